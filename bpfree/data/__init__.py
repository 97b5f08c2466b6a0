"""Data sets held as tensors on the device that trains on them, with batched augmentation."""

from bpfree.data._augment import AUGMENTATIONS
from bpfree.data._cavity import acoustic_cavity
from bpfree.data._images import NAMES, Splits, describe, load
from bpfree.data._tensors import TensorData, as_data

__all__ = ["AUGMENTATIONS", "NAMES", "Splits", "TensorData", "acoustic_cavity", "as_data", "describe", "load"]
