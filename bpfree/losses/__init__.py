"""`LocalLoss` and one file per objective."""

from bpfree.losses._base import LocalLoss, accuracy
from bpfree.losses._registry import loss_names, make_loss, register_loss
from bpfree.losses.cross_entropy import LocalCrossEntropy
from bpfree.losses.goodness import Goodness
from bpfree.losses.ridge import RidgeAccumulator

__all__ = [
    "Goodness",
    "LocalCrossEntropy",
    "LocalLoss",
    "RidgeAccumulator",
    "accuracy",
    "loss_names",
    "make_loss",
    "register_loss",
]
