"""bpfree: learning without a global backward pass, in PyTorch."""

from bpfree import data, losses, nn
from bpfree._errors import BadValue, BpfreeError, DataNotFound, Diverged
from bpfree.cascade import Block, Cascade, JointBlock
from bpfree.cutting import localize, split
from bpfree.losses import LocalLoss, RidgeAccumulator, register_loss
from bpfree.trainers import (
    Autoencoder,
    Backprop,
    BackpropGNN,
    CascadedForward,
    Checkpoint,
    CounterCurrentLearning,
    DeepSupervision,
    DirectFeedbackAlignment,
    ForwardForward,
    ForwardGNN,
    History,
    Hooks,
    HopMLP,
    HopRidge,
    Local,
    MFJoint,
    MonoForward,
    RandomFeatures,
    Trainer,
    get_trainer,
)

__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "Backprop",
    "BackpropGNN",
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
    "ForwardGNN",
    "History",
    "Hooks",
    "HopMLP",
    "HopRidge",
    "JointBlock",
    "Local",
    "LocalLoss",
    "MFJoint",
    "MonoForward",
    "RandomFeatures",
    "RidgeAccumulator",
    "Trainer",
    "data",
    "get_trainer",
    "localize",
    "losses",
    "nn",
    "register_loss",
    "split",
]
