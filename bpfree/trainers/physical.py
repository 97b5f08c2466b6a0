"""Physical local learning (Momeni et al., Science 382, 1297): trained matrices after physical devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.localize import Cut
from bpfree.core.readouts import GoodnessReadout, OnePassReadout, Readout
from bpfree.core.rule_names import make_rule
from bpfree.core.update_rules import ClosedFormGradient, UpdateRule
from bpfree.data import TensorData
from bpfree.encodings.label_slots import LabelSlots
from bpfree.engine.history import History
from bpfree.engine.settings import TrainerSettings
from bpfree.losses import LocalLoss, PairCosine
from bpfree.losses.pair_cosine import Reference
from bpfree.nn import passes
from bpfree.nn.physical import PhysicalFront
from bpfree.trainers.base import Trainer, level_of
from bpfree.trainers.run_context import RunContext

#: Number of rows that a device is calibrated with.
CALIBRATION_ROWS = 256


def physical_layers(net: nn.Module) -> tuple[nn.Module, list[tuple[PhysicalFront, nn.Linear]]]:
    """The first module and the layers of a network of `bpfree.nn.physical_net`.

    Returns:
        The module before the layers, and each layer as a pair of a front and a matrix.

    Raises:
        BadValue: If it is another network.
    """
    first, *parts = list(net) if isinstance(net, nn.Sequential) else [net]
    layers = [
        (front, linear)
        for front, linear in zip(parts[::2], parts[1::2], strict=False)
        if isinstance(front, PhysicalFront) and isinstance(linear, nn.Linear)
    ]
    if not layers or len(layers) < len(parts) // 2:
        raise BadValue(
            f"net is a {type(net).__name__} without devices: expected a network of bpfree.nn.physical_net"
        )
    return first, layers


class PhysicalTrainer(Trainer):
    """The base of trainers of networks of `bpfree.nn.physical_net`."""

    def stages(self, cut: Cut = "weight") -> tuple[list[nn.Sequential], nn.Module]:
        """The stages, each a device and a matrix, and the last matrix as the output layer."""
        slots, layers = physical_layers(self.net)
        stages = [nn.Sequential(front, linear) for front, linear in layers[:-1]]
        stages.append(nn.Sequential(layers[-1][0]))
        return [stages[0].insert(0, slots), *stages[1:]], layers[-1][1]

    @property
    def fronts(self) -> list[PhysicalFront]:
        """The fronts, which contain the devices, bottom first."""
        return [front for front, _ in physical_layers(self.net)[1]]

    @property
    def passes(self) -> dict[str, int]:
        """Number of rows that the devices have processed, by purpose."""
        return passes(self.net)

    def prepare(self, run: RunContext) -> History:
        """Calibrate the devices whose outputs are centered and scaled.

        The first device is calibrated with training samples. The inputs of the others are not known yet: they
        are calibrated with normally distributed rows.
        """
        generator = _seeds.generator(self.device, self.seed, "calibration")
        with run.hooks.window("calibrate"):
            for k, front in enumerate(self.fronts):
                if front.physical_device is not None and front.normalize == "calibrated":
                    shape = (CALIBRATION_ROWS, front.in_features)
                    rows = torch.randn(shape, generator=generator, device=self.device)
                    front.calibrate(self.first_rows(run.train, CALIBRATION_ROWS) if k == 0 else rows)
        return History()

    def first_rows(self, train: TensorData, n: int) -> Tensor:
        """The input of the first front for the first ``n`` training samples, ``[n, d]``."""
        x, _ = train.batch(torch.arange(min(n, len(train)), device=self.device))
        rows: Tensor = physical_layers(self.net)[0](x)
        return rows


@dataclass(frozen=True, kw_only=True)
class PhysicalSettings(TrainerSettings):
    """Settings of physical local learning.

    Attributes:
        theta: Inverse temperature of the pair loss.
        inner_steps: Number of steps on each measured output of a device. They need no further pass.
        negatives: Wrong labels: one ``random`` label, drawn at each step, or ``all``.
        reference: Distribution of the fixed directions.
        gradients: ``analytic`` for closed-form gradients, or ``autograd``.
        top_width: Width of the last matrix; None: that of the matrix below, or the number of inputs of the
            device.
        label_amplitude: Value of the slot of a label; None: the largest magnitude in the training data.
        cache: Whether the outputs of the first device for all labels are measured once and cached, which is
            valid if the device does not drift. A greedy schedule caches the outputs of every device.
        cache_age: Number of epochs after which they are measured again; None: never.
        readout: ``goodness``, with one pass for each class and layer; ``one_pass``, a linear layer on all
            magnitudes, a variant that is not in the paper.
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
    """A block that takes several steps on each output of its front, which saves passes through a device.

    The block above receives the output after the steps.

    Args:
        body: As for `Block`.
        loss: As for `Block`.
        front: As for `Block`.
        rule: As for `Block`.
        steps: Number of steps.
    """

    def __init__(
        self, body: nn.Module, loss: LocalLoss, front: nn.Module, rule: UpdateRule[Block], steps: int
    ) -> None:
        super().__init__(body, loss, front, rule)
        self.steps = steps

    def update(
        self, front_output: Rows, target: Tensor, feedback: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        if isinstance(self.rule, ClosedFormGradient) and isinstance(front_output, Tensor):
            assert self.optimizer is not None
            losses = self.rule.take_steps(self, front_output, target, feedback, self.optimizer, self.steps)
        else:
            losses, _ = super().update(front_output, target, feedback)
            for _ in range(1, self.steps):
                super().update(front_output, target, feedback)
        with torch.no_grad():
            return losses, self.body(front_output)


class Physical(PhysicalTrainer):
    """Each block has a device as its fixed front, and a matrix that is trained by the goodness of its output.

    The devices process samples with their label and with wrong labels. No gradient enters a device or crosses
    a layer; by default gradients are computed without autograd. The output layer of the network is not used.
    """

    id = "physical"
    Settings = PhysicalSettings
    settings: PhysicalSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.gradients == "analytic" and (s.precision != "float32" or s.compile is not None):
            raise BadValue(
                f"gradients = 'analytic' with precision = {s.precision!r} and compile = {s.compile!r}: the "
                "closed form is computed in float32 and not compiled; leave precision and compile"
            )
        if s.cache_age is not None and not s.cache:
            raise BadValue(
                f"cache_age = {s.cache_age} with cache = false: nothing is cached; set cache = true"
            )
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

    def prepare(self, run: RunContext) -> History:
        """Set the amplitude of labels by the training data, and calibrate the devices."""
        amplitude = self.settings.label_amplitude
        if amplitude is None:
            batches = torch.arange(len(run.train), device=self.device).split(run.fit.batch_size)
            amplitude = max(run.train.batch(indices)[0].abs().max().item() for indices in batches)
        self.slots.amplitude.fill_(amplitude)
        return super().prepare(run)

    def first_rows(self, train: TensorData, n: int) -> Tensor:
        x, y = train.batch(torch.arange(min(n, len(train)), device=self.device))
        return self.slots.labeled(x, y.unsqueeze(0))
