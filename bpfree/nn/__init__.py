"""Networks and layers."""

from bpfree._renamed import module_getattr
from bpfree.graphs.layers import GNN, Aggregate, Attention, EndToEndGNN, GCNPart, Hops, SAGEPart, learned_part
from bpfree.nn.autoencoder import autoencoder
from bpfree.nn.device_passes import (
    CountedModule,
    counted_modules,
    counting_passes,
    inferring_shapes,
    passes,
    physical_devices,
)
from bpfree.nn.digital_model import DigitalModelFront
from bpfree.nn.layers import (
    FeaturesFirst,
    LengthNorm,
    MapPool,
    RootMeanSquarePool,
    RowNorm,
    StraightThroughReLU,
    at_least_float32,
)
from bpfree.nn.networks import ACTIVATIONS, cafo_cnn, cnn, mlp
from bpfree.nn.physical import Normalization, PhysicalFront, physical_net
from bpfree.nn.vision import VGG8B, VGG11B, Norm, PadShortcut, Shortcut, resnet, vgg

__all__ = [
    "ACTIVATIONS",
    "GNN",
    "VGG8B",
    "VGG11B",
    "Aggregate",
    "Attention",
    "CountedModule",
    "DigitalModelFront",
    "EndToEndGNN",
    "FeaturesFirst",
    "GCNPart",
    "Hops",
    "LengthNorm",
    "MapPool",
    "Norm",
    "Normalization",
    "PadShortcut",
    "PhysicalFront",
    "RootMeanSquarePool",
    "RowNorm",
    "SAGEPart",
    "Shortcut",
    "StraightThroughReLU",
    "at_least_float32",
    "autoencoder",
    "cafo_cnn",
    "cnn",
    "counted_modules",
    "counting_passes",
    "inferring_shapes",
    "learned_part",
    "mlp",
    "passes",
    "physical_devices",
    "physical_net",
    "resnet",
    "vgg",
]

__getattr__ = module_getattr(
    __name__,
    {
        "Apparatus": "bpfree.physics:Device",
        "Counted": "CountedModule",
        "Normalise": "Normalization",
        "Purpose": "bpfree.physics:Purpose",
        "WholeGNN": "EndToEndGNN",
        "apparatus": "physical_devices",
        "asking": "counting_passes",
        "counted": "counted_modules",
        "widened": "at_least_float32",
    },
)
