"""Data sets stored as tensors on one device, with augmentation of whole batches."""

from bpfree.data._augment import AUGMENTATIONS
from bpfree.data._cavity import acoustic_cavity
from bpfree.data._convert import as_data
from bpfree.data._graph_data import GraphData
from bpfree.data._graphs import GRAPH_NAMES, GraphSplits, describe_graphs, fold_indices, load_graph
from bpfree.data._images import NAMES, Splits, describe, load
from bpfree.data._tensors import TensorData

__all__ = [
    "AUGMENTATIONS",
    "GRAPH_NAMES",
    "NAMES",
    "GraphData",
    "GraphSplits",
    "Splits",
    "TensorData",
    "acoustic_cavity",
    "as_data",
    "describe",
    "describe_graphs",
    "fold_indices",
    "load",
    "load_graph",
]
