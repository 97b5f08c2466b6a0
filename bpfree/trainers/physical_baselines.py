"""Baselines of physical local learning, on the same devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import BlockReadout
from bpfree.core.update_rules import Perturbation
from bpfree.engine.settings import TrainerSettings
from bpfree.losses import ClosedForm, LocalCrossEntropy
from bpfree.losses.closed_form import LAMBDAS
from bpfree.nn.digital_model import DigitalModelFront
from bpfree.nn.physical import PhysicalFront
from bpfree.physics.system import find_digital_model
from bpfree.trainers.direct_feedback import DirectFeedbackAlignment, DirectFeedbackSettings
from bpfree.trainers.physical import PhysicalTrainer
from bpfree.trainers.space import Space


@dataclass(frozen=True, kw_only=True)
class PhysicalBackpropSettings(TrainerSettings):
    """Settings of backpropagation through devices.

    Attributes:
        model: ``ideal``: outputs are measured on the device, and gradients are those of its exact digital
            model, which does not exist for a real device. ``aware``: physics-aware training, the same with an
            inexact digital model. ``in_silico``: the digital model replaces the device in training, and the
            trained weights are used on the device.
        mismatch: Error of the digital model, 0 to 1, see `bpfree.physics.Simulated.digital_model`.
        mismatch_seed: Seed of the error.
    """

    renamed: ClassVar[Mapping[str, str]] = {"twin_seed": "mismatch_seed"}

    model: Literal["ideal", "aware", "in_silico"] = "ideal"
    mismatch: Annotated[float, Ge(0), Le(1)] = 0.0
    mismatch_seed: Annotated[int, Ge(0)] = 0


class PhysicalBackprop(PhysicalTrainer):
    """Backpropagation through the network, with gradients of a digital model in place of each device."""

    id = "physical_backprop"
    Settings = PhysicalBackpropSettings
    settings: PhysicalBackpropSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.model == "ideal" and s.mismatch > 0:
            raise BadValue(
                f"mismatch = {s.mismatch} with model = 'ideal': the ideal digital model is exact; use 'aware'"
            )
        stages, output = self.stages(s.cut)
        layers = [
            self._with_digital_model(layer) if isinstance(layer, PhysicalFront) else layer
            for stage in stages
            for layer in stage
        ]
        block = Block(nn.Sequential(*layers), LocalCrossEntropy(output))
        return Cascade([block], {"last": BlockReadout()}, source=self.net)

    def _with_digital_model(self, front: PhysicalFront) -> DigitalModelFront:
        s = self.settings
        model = None
        if front.physical_device is not None:
            make = find_digital_model(front.physical_device.system)
            if make is None:
                raise BadValue(f"{self.id}: the device has no digital model; only simulated systems have one")
            model = make(s.mismatch, s.mismatch_seed)
        return DigitalModelFront(front, model, "digital_model" if s.model == "in_silico" else "device")

    @property
    def locality(self) -> str:
        return "L0"


class PhysicalDirectFeedback(PhysicalTrainer, DirectFeedbackAlignment):
    """Direct feedback alignment: the error of the output is projected to each matrix, past the devices."""

    id = "physical_dfa"
    Settings = DirectFeedbackSettings

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, object]:
        """Nothing: there is no gradient through a device to compare the feedback with."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PhysicalRidgeSettings(TrainerSettings):
    """Settings of random features with ridge regression.

    Attributes:
        lam: Ridge penalties from which one is selected, on the validation data if there are any.
    """

    lam: list[float] = field(default_factory=lambda: list(LAMBDAS))


class PhysicalRidge(PhysicalTrainer):
    """Ridge regression, in closed form, on the outputs of the first device: an extreme learning machine.

    It takes one pass for each sample; ``epochs`` has no effect.
    """

    id = "physical_ridge"
    Settings = PhysicalRidgeSettings
    settings: PhysicalRidgeSettings
    #: There are no gradient steps, and the penalty is selected in closed form.
    space: ClassVar[Space] = {}

    def make_cascade(self, n_classes: int) -> Cascade:
        stages, _ = self.stages()
        front = nn.Sequential(*(m for m in stages[0] if not isinstance(m, nn.Linear)))
        block = Block(nn.Identity(), ClosedForm(self.settings.lam), front=front)
        return Cascade([block], {"last": BlockReadout()})

    @property
    def locality(self) -> str:
        return "L3"


@dataclass(frozen=True, kw_only=True)
class PhysicalSPSASettings(TrainerSettings):
    """Settings of simultaneous perturbation.

    Attributes:
        perturbation: Size of the perturbation of each weight.
        directions: Number of random directions whose estimates are averaged in each step.
    """

    perturbation: Annotated[float, Gt(0)] = 1e-2
    directions: Annotated[int, Ge(1)] = 1


class PhysicalSPSA(PhysicalTrainer):
    """Simultaneous perturbation (Spall, IEEE TAC 37, 332, 1992): gradients are estimated by measured losses.

    All matrices are perturbed along a random sign vector. The difference of the losses for both signs gives
    the slope along it. The optimizer uses this estimate in place of the gradient.
    """

    id = "physical_spsa"
    Settings = PhysicalSPSASettings
    settings: PhysicalSPSASettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, output = self.stages(s.cut)
        body = nn.Sequential(*(layer for stage in stages for layer in stage))
        rule = Perturbation(s.perturbation, s.directions)
        block = Block(body, LocalCrossEntropy(output), rule=rule)
        return Cascade([block], {"last": BlockReadout()}, source=self.net)

    @property
    def locality(self) -> str:
        return "L3"
