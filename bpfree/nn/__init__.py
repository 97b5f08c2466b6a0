"""Bodies: networks and the small layers that they are made of."""

from bpfree.nn.autoencoder import autoencoder
from bpfree.nn.counted import Apparatus, Counted, Purpose, apparatus, asking, counted, passes
from bpfree.nn.layers import LengthNorm, RootMeanSquarePool, StraightThroughReLU, widened
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp
from bpfree.nn.physical import Normalise, PhysicalFront, physical_net

__all__ = [
    "ACTIVATIONS",
    "Apparatus",
    "Counted",
    "LengthNorm",
    "Normalise",
    "PhysicalFront",
    "Purpose",
    "RootMeanSquarePool",
    "StraightThroughReLU",
    "apparatus",
    "asking",
    "autoencoder",
    "cafo_cnn",
    "cnn",
    "counted",
    "mlp",
    "passes",
    "physical_net",
    "widened",
]
