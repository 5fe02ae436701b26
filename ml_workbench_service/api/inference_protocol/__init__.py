"""The Open Inference Protocol, version 2, over HTTP (`/v2`) and gRPC: another way to the answers of `/predict`."""
