"""Bodies: networks and the small layers that they are made of."""

from bpfree.nn.layers import LengthNorm, StraightThroughReLU
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp

__all__ = ["ACTIVATIONS", "LengthNorm", "StraightThroughReLU", "cafo_cnn", "cnn", "mlp"]
