"""bpfree: learning without a global backward pass, in PyTorch."""

from bpfree import data, losses, meters, nn
from bpfree._errors import (
    BadValue,
    BpfreeError,
    DataNotFound,
    Diverged,
    LinkError,
    MeterError,
    NotMeasurable,
    WorkerLost,
)
from bpfree._renamed import module_getattr
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.localize import localize, split
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
    Physical,
    PhysicalBackprop,
    PhysicalDirectFeedback,
    PhysicalRidge,
    PhysicalSPSA,
    RandomFeatures,
    Trainer,
    TrainerSettings,
    get_trainer,
    register_trainer,
)

__getattr__ = module_getattr(__name__, {"WireError": "LinkError"})

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
    "LinkError",
    "Local",
    "LocalLoss",
    "MFJoint",
    "MeterError",
    "MonoForward",
    "NotMeasurable",
    "Physical",
    "PhysicalBackprop",
    "PhysicalDirectFeedback",
    "PhysicalRidge",
    "PhysicalSPSA",
    "RandomFeatures",
    "RidgeAccumulator",
    "Trainer",
    "TrainerSettings",
    "WorkerLost",
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

__getattr__ = module_getattr(__name__, {"WireError": "LinkError"})
