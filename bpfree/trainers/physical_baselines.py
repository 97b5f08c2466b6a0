"""What physical local learning is compared with, on the same devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

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
        model: ``ideal``: the device answers, and gradients are those of its exact twin, which nobody has of a
            real device. ``aware``: physics-aware training, the same with a mismatched twin. ``in_silico``:
            the twin answers in training, and the weights are then used on the device.
        mismatch: How wrong the twin is, 0 to 1, see `bpfree.physics.Simulated.digital_model`.
        twin_seed: Which error the twin makes.
    """

    model: Literal["ideal", "aware", "in_silico"] = "ideal"
    mismatch: Annotated[float, Ge(0), Le(1)] = 0.0
    twin_seed: Annotated[int, Ge(0)] = 0


class PhysicalBackprop(PhysicalTrainer):
    """The matrices between the devices by backpropagation, with a twin's gradient in a device's place."""

    id = "physical_backprop"
    Settings = PhysicalBackpropSettings
    settings: PhysicalBackpropSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.model == "ideal" and s.mismatch > 0:
            raise BadValue(
                f"mismatch = {s.mismatch} with model = 'ideal': the ideal twin is exact; use 'aware'"
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
            model = make(s.mismatch, s.twin_seed)
        return DigitalModelFront(front, model, "digital_model" if s.model == "in_silico" else "device")

    @property
    def locality(self) -> str:
        return "L0"


class PhysicalDirectFeedback(PhysicalTrainer, DirectFeedbackAlignment):
    """Direct feedback alignment through opaque devices: the output's error reaches each matrix by itself."""

    id = "physical_dfa"
    Settings = DirectFeedbackSettings

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Nothing: the gradient that the feedback stands for does not exist behind an opaque device."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PhysicalRidgeSettings(TrainerSettings):
    """Settings of random features with ridge regression.

    Attributes:
        lam: Penalties that validation chooses from.
    """

    lam: list[float] = field(default_factory=lambda: list(LAMBDAS))


class PhysicalRidge(PhysicalTrainer):
    """The first device as random features, and ridge regression in closed form: an extreme learning machine.

    One pass for each sample, whatever ``epochs``.
    """

    id = "physical_ridge"
    Settings = PhysicalRidgeSettings
    settings: PhysicalRidgeSettings
    #: It takes no steps, and chooses its penalty itself.
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
        perturbation: How far each weight is moved, up and down.
        directions: Random directions whose estimates are averaged in each step.
    """

    perturbation: Annotated[float, Gt(0)] = 1e-2
    directions: Annotated[int, Ge(1)] = 1


class PhysicalSPSA(PhysicalTrainer):
    """Simultaneous perturbation (Spall, IEEE TAC 37, 332, 1992): the loss is measured, gradients are guessed.

    All matrices move along a random sign vector at once; two measurements of the loss give the slope along
    it. The optimizer of the settings takes the estimate for a gradient.
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
