"""Bodies: networks and the small layers that they are made of."""

from bpfree.nn.layers import LengthNorm, StraightThroughReLU
from bpfree.nn.networks import ACTIVATIONS, cnn, mlp

__all__ = ["ACTIVATIONS", "LengthNorm", "StraightThroughReLU", "cnn", "mlp"]
