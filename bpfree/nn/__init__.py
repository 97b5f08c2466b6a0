"""Bodies: networks and the small layers that they are made of."""

from bpfree.nn.autoencoder import autoencoder
from bpfree.nn.graph import GNN, Aggregate, Attention, GCNPart, Hops, SAGEPart, WholeGNN, learned_part
from bpfree.nn.layers import LengthNorm, RootMeanSquarePool, StraightThroughReLU, widened
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp

__all__ = [
    "ACTIVATIONS",
    "GNN",
    "Aggregate",
    "Attention",
    "GCNPart",
    "Hops",
    "LengthNorm",
    "RootMeanSquarePool",
    "SAGEPart",
    "StraightThroughReLU",
    "WholeGNN",
    "autoencoder",
    "cafo_cnn",
    "cnn",
    "learned_part",
    "mlp",
    "widened",
]
