"""`LocalLoss` and one file per objective."""

from bpfree.losses._base import LocalLoss, accuracy
from bpfree.losses._registry import loss_names, make_loss, register_loss
from bpfree.losses.closed_form import ClosedForm
from bpfree.losses.counter_current import CounterCurrent, PrototypeOutput
from bpfree.losses.cross_entropy import LocalCrossEntropy
from bpfree.losses.direct_feedback import DirectFeedback
from bpfree.losses.dual_ridge import DualRidge
from bpfree.losses.goodness import Goodness
from bpfree.losses.pairs import PairScore, TopToInputPairs, pair_dot
from bpfree.losses.prototypes import ClassPrototypes, TopToInput, TopToLoss
from bpfree.losses.reconstruction import MapPair, Reconstruction
from bpfree.losses.ridge import RidgeAccumulator
from bpfree.losses.sparsemax import LocalSparsemax, sparsemax

__all__ = [
    "ClassPrototypes",
    "ClosedForm",
    "CounterCurrent",
    "DirectFeedback",
    "DualRidge",
    "Goodness",
    "LocalCrossEntropy",
    "LocalLoss",
    "LocalSparsemax",
    "MapPair",
    "PairScore",
    "PrototypeOutput",
    "Reconstruction",
    "RidgeAccumulator",
    "TopToInput",
    "TopToInputPairs",
    "TopToLoss",
    "accuracy",
    "loss_names",
    "make_loss",
    "pair_dot",
    "register_loss",
    "sparsemax",
]
