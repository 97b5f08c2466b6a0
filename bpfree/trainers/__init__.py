"""Trainers. Each combines an encoding, local losses, update rules, a schedule and readouts."""

from bpfree._renamed import module_getattr
from bpfree.engine.history import History
from bpfree.engine.loop import CALIBRATION_SAMPLES
from bpfree.engine.run_state import Checkpoint, Hooks
from bpfree.engine.settings import FitSettings, TrainerSettings
from bpfree.trainers.autoencoder import Autoencoder
from bpfree.trainers.backprop import Backprop, DeepSupervision, MFJoint
from bpfree.trainers.base import LEVELS, Trainer
from bpfree.trainers.cascaded_forward import CascadedForward
from bpfree.trainers.counter_current import CounterCurrentLearning
from bpfree.trainers.direct_feedback import DirectFeedbackAlignment
from bpfree.trainers.forward_forward import ForwardForward
from bpfree.trainers.forward_gnn import ForwardGNN
from bpfree.trainers.graph import GraphTrainer
from bpfree.trainers.graph_controls import BackpropGNN, HopMLP, HopRidge
from bpfree.trainers.local import Local, MonoForward, RandomFeatures
from bpfree.trainers.physical import Physical
from bpfree.trainers.physical_baselines import (
    PhysicalBackprop,
    PhysicalDirectFeedback,
    PhysicalRidge,
    PhysicalSPSA,
)
from bpfree.trainers.registry import TRAINERS, get_trainer, register_trainer
from bpfree.trainers.run_context import RunContext
from bpfree.trainers.space import Choice, Dimension, Range, Space, active_dimensions

__getattr__ = module_getattr(__name__, {"meant": "active_dimensions"})

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
    Physical,
    PhysicalBackprop,
    PhysicalDirectFeedback,
    PhysicalRidge,
    PhysicalSPSA,
    Local,
    BackpropGNN,
    HopMLP,
    HopRidge,
    ForwardGNN,
):
    register_trainer(_kind)

__all__ = [
    "CALIBRATION_SAMPLES",
    "LEVELS",
    "TRAINERS",
    "Autoencoder",
    "Backprop",
    "BackpropGNN",
    "CascadedForward",
    "Checkpoint",
    "Choice",
    "CounterCurrentLearning",
    "DeepSupervision",
    "Dimension",
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
    "Physical",
    "PhysicalBackprop",
    "PhysicalDirectFeedback",
    "PhysicalRidge",
    "PhysicalSPSA",
    "RandomFeatures",
    "Range",
    "RunContext",
    "Space",
    "Trainer",
    "TrainerSettings",
    "active_dimensions",
    "get_trainer",
    "register_trainer",
]
