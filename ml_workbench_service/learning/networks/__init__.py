"""Networks, each beside its ONNX graph."""
