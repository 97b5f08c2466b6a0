"""Bodies: networks and the small layers that they are made of."""

from bpfree.nn.autoencoder import autoencoder
from bpfree.nn.layers import LengthNorm, RootMeanSquarePool, RowNorm, StraightThroughReLU, widened
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp

__all__ = [
    "ACTIVATIONS",
    "LengthNorm",
    "RootMeanSquarePool",
    "RowNorm",
    "StraightThroughReLU",
    "autoencoder",
    "cafo_cnn",
    "cnn",
    "mlp",
    "widened",
]
