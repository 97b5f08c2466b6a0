"""Bodies: networks and the small layers that they are made of."""

from bpfree.graphs.layers import GNN, Aggregate, Attention, GCNPart, Hops, SAGEPart, WholeGNN, learned_part
from bpfree.nn.autoencoder import autoencoder
from bpfree.nn.counted import Apparatus, Counted, Purpose, apparatus, asking, counted, passes
from bpfree.nn.layers import (
    FeaturesFirst,
    LengthNorm,
    MapPool,
    RootMeanSquarePool,
    RowNorm,
    StraightThroughReLU,
    widened,
)
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp
from bpfree.nn.physical import Normalise, PhysicalFront, physical_net
from bpfree.nn.vision import VGG8B, VGG11B, Norm, PadShortcut, Shortcut, resnet, vgg

__all__ = [
    "ACTIVATIONS",
    "GNN",
    "VGG8B",
    "VGG11B",
    "Aggregate",
    "Apparatus",
    "Attention",
    "Counted",
    "FeaturesFirst",
    "GCNPart",
    "Hops",
    "LengthNorm",
    "MapPool",
    "Norm",
    "Normalise",
    "PadShortcut",
    "PhysicalFront",
    "Purpose",
    "RootMeanSquarePool",
    "RowNorm",
    "SAGEPart",
    "Shortcut",
    "StraightThroughReLU",
    "WholeGNN",
    "apparatus",
    "asking",
    "autoencoder",
    "cafo_cnn",
    "cnn",
    "counted",
    "learned_part",
    "mlp",
    "passes",
    "physical_net",
    "resnet",
    "vgg",
    "widened",
]
