"""Trainers: each family is a named point in the space of encoding, objective, locality, schedule, readout."""

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.trainers.autoencoder import Autoencoder
from bpfree.trainers.backprop import Backprop, DeepSupervision, MFJoint
from bpfree.trainers.base import LEVELS, Trainer
from bpfree.trainers.cascaded_forward import CascadedForward
from bpfree.trainers.counter_current import CounterCurrentLearning
from bpfree.trainers.direct_feedback import DirectFeedbackAlignment
from bpfree.trainers.fitting import CALIBRATION_SAMPLES, Checkpoint, Hooks
from bpfree.trainers.forward_forward import ForwardForward
from bpfree.trainers.forward_gnn import ForwardGNN
from bpfree.trainers.graph import GraphTrainer
from bpfree.trainers.graph_controls import BackpropGNN, HopMLP, HopRidge
from bpfree.trainers.history import History
from bpfree.trainers.local import Local, MonoForward, RandomFeatures
from bpfree.trainers.settings import FitSettings, TrainerSettings

TRAINERS: dict[str, type[Trainer]] = {
    kind.id: kind
    for kind in (
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
        BackpropGNN,
        HopMLP,
        HopRidge,
        ForwardGNN,
    )
}


def get_trainer(name: str) -> type[Trainer]:
    """The trainer class with this id.

    Raises:
        BadValue: If there is none.
    """
    if name not in TRAINERS:
        raise BadValue(f"unknown trainer {name!r}; {did_you_mean(name, TRAINERS)}")
    return TRAINERS[name]


__all__ = [
    "CALIBRATION_SAMPLES",
    "LEVELS",
    "TRAINERS",
    "Autoencoder",
    "Backprop",
    "BackpropGNN",
    "CascadedForward",
    "Checkpoint",
    "CounterCurrentLearning",
    "DeepSupervision",
    "DirectFeedbackAlignment",
    "FitSettings",
    "ForwardForward",
    "ForwardGNN",
    "GraphTrainer",
    "History",
    "Hooks",
    "HopMLP",
    "HopRidge",
    "Local",
    "MFJoint",
    "MonoForward",
    "RandomFeatures",
    "Trainer",
    "TrainerSettings",
    "get_trainer",
]
