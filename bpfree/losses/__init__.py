"""Local losses: the base classes, and one module per objective."""

from bpfree._renamed import module_getattr
from bpfree.losses.base import (
    BlockLoss,
    ClosedFormLoss,
    ClosedFormStep,
    FeedbackLoss,
    LocalLoss,
    OnePassLoss,
    ScoringLoss,
    StatefulFeedbackLoss,
)
from bpfree.losses.closed_form import ClosedForm
from bpfree.losses.counter_current import CounterCurrent, PrototypeOutput
from bpfree.losses.cross_entropy import LocalCrossEntropy
from bpfree.losses.direct_feedback import DirectFeedback
from bpfree.losses.dual_ridge import DualRidge
from bpfree.losses.goodness import Goodness
from bpfree.losses.mean_goodness import MeanGoodness
from bpfree.losses.pair_cosine import PairCosine
from bpfree.losses.pairs import PairScore, TopToInputPairs, pair_dot
from bpfree.losses.prototypes import ClassPrototypes, PrototypeGoodness, TopToInput, TopToLoss
from bpfree.losses.reconstruction import MapPair, Reconstruction
from bpfree.losses.registry import loss_names, loss_options, make_loss, register_loss
from bpfree.losses.ridge import RidgeAccumulator
from bpfree.losses.similarity import PredSim
from bpfree.losses.sparsemax import LocalSparsemax, sparsemax

__all__ = [
    "BlockLoss",
    "ClassPrototypes",
    "ClosedForm",
    "ClosedFormLoss",
    "ClosedFormStep",
    "CounterCurrent",
    "DirectFeedback",
    "DualRidge",
    "FeedbackLoss",
    "Goodness",
    "LocalCrossEntropy",
    "LocalLoss",
    "LocalSparsemax",
    "MapPair",
    "MeanGoodness",
    "OnePassLoss",
    "PairCosine",
    "PairScore",
    "PredSim",
    "PrototypeGoodness",
    "PrototypeOutput",
    "Reconstruction",
    "RidgeAccumulator",
    "ScoringLoss",
    "StatefulFeedbackLoss",
    "TopToInput",
    "TopToInputPairs",
    "TopToLoss",
    "loss_names",
    "loss_options",
    "make_loss",
    "pair_dot",
    "register_loss",
    "sparsemax",
]

__getattr__ = module_getattr(__name__, {"accuracy": "bpfree.metrics:accuracy"})
