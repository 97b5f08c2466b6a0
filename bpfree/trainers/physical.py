"""Physical local learning (Momeni et al., Science 382, 1297): trained matrices behind opaque devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import GoodnessReadout, OnePassReadout, Readout
from bpfree.core.rule_names import make_rule
from bpfree.core.update_rules import UpdateRule
from bpfree.data import TensorData
from bpfree.encodings.label_slots import LabelSlots
from bpfree.engine.history import History
from bpfree.engine.run_state import Checkpoint, Hooks
from bpfree.engine.settings import FitSettings, TrainerSettings
from bpfree.losses import LocalLoss, PairCosine
from bpfree.losses.pair_cosine import Reference
from bpfree.nn import passes
from bpfree.nn.physical import PhysicalFront
from bpfree.trainers.base import Trainer, level_of

#: Rows that a device is calibrated with.
CALIBRATION_ROWS = 256


def physical_layers(net: nn.Module) -> tuple[nn.Module, list[tuple[PhysicalFront, nn.Linear]]]:
    """What stands in front of the layers of a network that `bpfree.nn.physical_net` made, and the layers.

    Raises:
        BadValue: If it is another network.
    """
    first, *parts = list(net) if isinstance(net, nn.Sequential) else [net]
    layers = list(zip(parts[::2], parts[1::2], strict=False))
    if not layers or not all(isinstance(f, PhysicalFront) and isinstance(m, nn.Linear) for f, m in layers):
        raise BadValue(
            f"{type(net).__name__} is no network with devices inside: make it by bpfree.nn.physical_net"
        )
    return first, layers  # type: ignore[return-value]


class PhysicalTrainer(Trainer):
    """A trainer of networks that `bpfree.nn.physical_net` made."""

    def stages(self, cut: Any = "weight") -> tuple[list[nn.Sequential], nn.Module]:
        """A device and the matrix behind it, stage by stage; the last matrix is the output layer."""
        slots, layers = physical_layers(self.net)
        stages = [nn.Sequential(front, linear) for front, linear in layers[:-1]]
        stages.append(nn.Sequential(layers[-1][0]))
        return [stages[0].insert(0, slots), *stages[1:]], layers[-1][1]

    @property
    def fronts(self) -> list[PhysicalFront]:
        """The devices with their drives, bottom first."""
        return [front for front, _ in physical_layers(self.net)[1]]

    @property
    def passes(self) -> dict[str, int]:
        """Rows that the devices were sent so far, by purpose."""
        return passes(self.net)

    def prepare(
        self,
        train: TensorData,
        validation: TensorData | None,
        fit: FitSettings,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
    ) -> History:
        """Calibrate the devices whose answers are to be centred and scaled.

        The first layer's is sent training samples, the others', whose drives nobody knows yet, normal rows.
        """
        generator = _seeds.generator(self.device, self.seed, "calibration")
        with hooks.window("calibrate"):
            for k, front in enumerate(self.fronts):
                if front.physical_device is not None and front.normalize == "calibrated":
                    shape = (CALIBRATION_ROWS, front.in_features)
                    rows = torch.randn(shape, generator=generator, device=self.device)
                    front.calibrate(self.first_rows(train, CALIBRATION_ROWS) if k == 0 else rows)
        return History()

    def first_rows(self, train: TensorData, n: int) -> Tensor:
        """What the first device is sent of the first ``n`` training samples, ``[n, d]``."""
        x, _ = train.batch(torch.arange(min(n, len(train)), device=self.device))
        rows: Tensor = physical_layers(self.net)[0](x)
        return rows


@dataclass(frozen=True, kw_only=True)
class PhysicalSettings(TrainerSettings):
    """Settings of physical local learning.

    Attributes:
        theta: Inverse temperature of the pair loss.
        inner_steps: Steps on each recorded answer; they cost no pass.
        negatives: One ``random`` wrong label, drawn anew at each step, or ``all`` of them.
        reference: Distribution of the fixed directions.
        gradients: ``analytic``, the closed form, or the local ``autograd``.
        top_width: Width of the last matrix; None: that of the one below, or the device's inputs.
        label_amplitude: Value of the label's slot; None: the largest magnitude in the training data.
        cache: Whether the first device's answers to all labels are measured once and kept. They hold as long
            as the device stands still. Under a greedy schedule every layer's are.
        cache_age: Epochs after which they are measured again; None: never.
        readout: ``goodness``, one pass for each class and layer; ``one_pass``, a linear layer on all
            magnitudes, a variant that is not the paper's.
        readout_lr: Learning rate of ``one_pass``.
        readout_weight_decay: Its weight decay.
    """

    theta: Annotated[float, Gt(0)] = 4.0
    inner_steps: Annotated[int, Ge(1)] = 10
    negatives: Literal["random", "all"] = "random"
    reference: Reference = "gaussian"
    gradients: Literal["analytic", "autograd"] = "analytic"
    top_width: Annotated[int, Ge(2)] | None = None
    label_amplitude: Annotated[float, Gt(0)] | None = None
    cache: bool = False
    cache_age: Annotated[int, Ge(1)] | None = None
    readout: Literal["goodness", "one_pass"] = "goodness"
    readout_lr: Annotated[float, Gt(0)] = 1e-2
    readout_weight_decay: Annotated[float, Ge(0)] = 0.0

    def readout_rate(self) -> float:
        return self.readout_lr

    def readout_decay(self) -> float:
        return self.readout_weight_decay

    def cache_lifetime(self) -> int | None:
        return self.cache_age


class RepeatedBlock(Block):
    """A block that takes several steps on each output of its front, which costs passes through a device.

    The block above receives the output after them.

    Args:
        body: As for `Block`.
        loss: As for `Block`.
        front: As for `Block`.
        rule: As for `Block`.
        steps: Number of steps.
    """

    def __init__(
        self, body: nn.Module, loss: LocalLoss, front: nn.Module, rule: UpdateRule[Any], steps: int
    ) -> None:
        super().__init__(body, loss, front, rule)
        self.steps = steps

    def update(
        self, front_output: Rows, target: Tensor, feedback: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        losses, _ = super().update(front_output, target, feedback)
        for _ in range(1, self.steps):
            super().update(front_output, target, feedback)
        with torch.no_grad():
            return losses, self.body(front_output)


class Physical(PhysicalTrainer):
    """Each layer is a device, a fixed front, and a matrix that learns from the goodness of its own output.

    Samples are sent with their label and with wrong ones. No gradient enters a device or crosses a layer; by
    default none is computed by autograd at all. The network's output layer takes no part.
    """

    id = "physical"
    Settings = PhysicalSettings
    settings: PhysicalSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.gradients == "analytic" and (s.precision != "float32" or s.compile is not None):
            raise BadValue(
                "gradients = 'analytic': computed in float32 and not compiled; leave precision and compile"
            )
        if s.cache_age is not None and not s.cache:
            raise BadValue(f"cache_age = {s.cache_age}: nothing is kept; it needs cache = true")
        _, layers = physical_layers(self.net)
        front = layers[-1][0]
        top = s.top_width or (layers[-2][1].out_features if len(layers) > 1 else front.drive.n_in)
        linears = [linear for _, linear in layers[:-1]] + [nn.Linear(front.out_features, top)]
        blocks = [
            RepeatedBlock(linear, self._loss(k), front, make_rule(s.gradients), s.inner_steps)
            for k, ((front, _), linear) in enumerate(zip(layers, linears, strict=True))
        ]
        readouts: dict[str, Readout] = {"goodness": GoodnessReadout(skip_first=False)}
        if s.readout == "one_pass":
            readouts = {"one_pass": OnePassReadout()}
        return Cascade(blocks, readouts, LabelSlots(n_classes, s.negatives))

    def _loss(self, number: int) -> PairCosine:
        s = self.settings
        return PairCosine(s.theta, 1 if s.negatives == "random" else None, s.reference, self.seed, number)

    @property
    def locality(self) -> str:
        learns = self.settings.readout == "one_pass"
        best = "L3" if self.settings.gradients == "analytic" and not learns else "L2"
        return level_of([linear for _, linear in physical_layers(self.net)[1]], best)

    @property
    def slots(self) -> LabelSlots:
        """The encoding."""
        encoding = self.cascade.encoding
        assert isinstance(encoding, LabelSlots)
        return encoding

    def prepare(
        self,
        train: TensorData,
        validation: TensorData | None,
        fit: FitSettings,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
    ) -> History:
        """Take the amplitude of labels from the training data, and calibrate."""
        amplitude = self.settings.label_amplitude
        if amplitude is None:
            everyone = torch.arange(len(train), device=self.device).split(fit.batch_size)
            amplitude = max(train.batch(indices)[0].abs().max().item() for indices in everyone)
        self.slots.amplitude.fill_(amplitude)
        return super().prepare(train, validation, fit, checkpoint, hooks)

    def first_rows(self, train: TensorData, n: int) -> Tensor:
        x, y = train.batch(torch.arange(min(n, len(train)), device=self.device))
        return self.slots.labelled(x, y.unsqueeze(0))
