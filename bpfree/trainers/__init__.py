"""Trainers: each family is a named point in the space of encoding, objective, locality, schedule, readout."""

from bpfree.trainers.autoencoder import Autoencoder
from bpfree.trainers.backprop import Backprop, DeepSupervision, MFJoint
from bpfree.trainers.base import LEVELS, Trainer
from bpfree.trainers.cascaded_forward import CascadedForward
from bpfree.trainers.counter_current import CounterCurrentLearning
from bpfree.trainers.direct_feedback import DirectFeedbackAlignment
from bpfree.trainers.fitting import CALIBRATION_SAMPLES, Checkpoint, Hooks
from bpfree.trainers.forward_forward import ForwardForward
from bpfree.trainers.history import History
from bpfree.trainers.local import Local, MonoForward, RandomFeatures
from bpfree.trainers.registry import TRAINERS, get_trainer, register_trainer
from bpfree.trainers.settings import FitSettings, TrainerSettings
from bpfree.trainers.space import Choice, Dimension, Range, Space, meant

for _kind in (
    Backprop,
    DeepSupervision,
    MFJoint,
    RandomFeatures,
    DirectFeedbackAlignment,
    ForwardForward,
    MonoForward,
    CascadedForward,
    CounterCurrentLearning,
    Local,
):
    register_trainer(_kind)

__all__ = [
    "CALIBRATION_SAMPLES",
    "LEVELS",
    "TRAINERS",
    "Autoencoder",
    "Backprop",
    "CascadedForward",
    "Checkpoint",
    "Choice",
    "CounterCurrentLearning",
    "DeepSupervision",
    "Dimension",
    "DirectFeedbackAlignment",
    "FitSettings",
    "ForwardForward",
    "History",
    "Hooks",
    "Local",
    "MFJoint",
    "MonoForward",
    "RandomFeatures",
    "Range",
    "Space",
    "Trainer",
    "TrainerSettings",
    "get_trainer",
    "meant",
    "register_trainer",
]
