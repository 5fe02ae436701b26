"""`transformer`: a causal transformer encoder, read at its newest bar."""

from ml_workbench_service.learning.networks.transformer_family import TransformerFamily, TransformerHyperparameters


class Transformer(TransformerFamily[TransformerHyperparameters]):
    """Self-attention over the window (Vaswani et al., NeurIPS 2017, arXiv:1706.03762), causal, with rotary positions.

    Finds a signal at whatever bar of the window it is, and signals that act only together; needs more data than a
    recurrent network. On exchange rates it rarely beats a linear model (Zeng et al., AAAI 2023, arXiv:2205.13504).
    """

    name = "transformer"
