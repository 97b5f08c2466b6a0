"""bpfree: learning without a global backward pass, in PyTorch."""

from bpfree import data, losses, meters, nn
from bpfree._errors import BadValue, BpfreeError, DataNotFound, Diverged, MeterError, NotMeasurable
from bpfree.cascade import Block, Cascade, JointBlock
from bpfree.cutting import localize, split
from bpfree.losses import LocalLoss, RidgeAccumulator, register_loss
from bpfree.trainers import (
    Autoencoder,
    Backprop,
    CascadedForward,
    Checkpoint,
    CounterCurrentLearning,
    DeepSupervision,
    DirectFeedbackAlignment,
    ForwardForward,
    History,
    Hooks,
    Local,
    MFJoint,
    MonoForward,
    RandomFeatures,
    Trainer,
    TrainerSettings,
    get_trainer,
    register_trainer,
)

__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "Backprop",
    "BadValue",
    "Block",
    "BpfreeError",
    "Cascade",
    "CascadedForward",
    "Checkpoint",
    "CounterCurrentLearning",
    "DataNotFound",
    "DeepSupervision",
    "DirectFeedbackAlignment",
    "Diverged",
    "ForwardForward",
    "History",
    "Hooks",
    "JointBlock",
    "Local",
    "LocalLoss",
    "MFJoint",
    "MeterError",
    "MonoForward",
    "NotMeasurable",
    "RandomFeatures",
    "RidgeAccumulator",
    "Trainer",
    "TrainerSettings",
    "data",
    "get_trainer",
    "localize",
    "losses",
    "meters",
    "nn",
    "register_loss",
    "register_trainer",
    "split",
]
