"""Forward-Forward (Hinton, arXiv 2212.13345)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import ClassifierReadout, GoodnessReadout, Readout
from bpfree.encodings.label_overlay import LabelOverlay, Overlay, overlaid_bodies
from bpfree.engine.history import History
from bpfree.engine.settings import LRSchedule, OptimizerName, TrainerSettings
from bpfree.losses import Goodness
from bpfree.nn import LengthNorm, RowNorm
from bpfree.nn.weights import has_default_init
from bpfree.trainers.base import Trainer, bodies, level_of
from bpfree.trainers.run_context import RunContext
from bpfree.trainers.space import STEPS, Range, Space

WeightLayer = nn.Linear | nn.modules.conv._ConvNd


@dataclass(frozen=True, kw_only=True)
class ForwardForwardSettings(TrainerSettings):
    """Settings of Forward-Forward. The defaults are those of the supervised reference code.

    Attributes:
        goodness: Sum or mean of squares.
        threshold: Threshold of the goodness; None: the width for the sum, 2 for the mean.
        objective: ``threshold`` (logistic) or ``symmetric`` (SymBa).
        alpha: Slope of the symmetric loss.
        peer_weight: Weight of peer normalization.
        peer_momentum: Decay of its running mean.
        straight_through: Whether the backward pass of ReLU is the identity; None: if ``peer_weight`` > 0.
        norm: Normalization between blocks, and before the classifier: ``length`` divides each row by the root
            of its mean square; ``layer`` subtracts its mean first. Both remove the goodness of the block
            below from the input.
        negatives: Distribution of wrong labels, see `bpfree.encodings.label_overlay.LabelOverlay`.
        redraw_negatives: Whether wrong labels are drawn at every step, or once for the run (a greedy schedule
            can then cache features).
        overlay: Where the label code is added. ``auto``: over the first C values of images, if these values
            are the same in all training samples (the border of MNIST), otherwise beside the input, as C
            additional values; ``beside``; ``force``: over the first C values, with a warning if they vary.
        label_scale: Scale of the label code. Over the input: its value, where 1 is the range of raw pixels.
            Beside the input: its length, where 1 is the root mean square length of the input of a unit of the
            first layer.
        skip_first: Whether readouts leave out the first block.
        readout: The prediction rule. Accuracy of the other readout is reported too.
        classifier: Whether the classifier readout is trained. Required if it is the prediction rule.
        readout_lr: Learning rate of the classifier readout.
        readout_weight_decay: Its weight decay.
        init: ``unit``: weights are initialized from a normal distribution with standard deviation 1/sqrt(fan
            out), and biases to zero, except for frozen layers and computed weights (weight normalization); a
            warning is given if the network has other weights than torch's default initialization.
            ``torch``: the weights of the network are used.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 3e-4
    optimizer: OptimizerName = "sgd"
    lr_schedule: LRSchedule = "cooldown"
    goodness: Literal["sum", "mean"] = "sum"
    threshold: Annotated[float, Gt(0)] | None = None
    objective: Literal["threshold", "symmetric"] = "threshold"
    alpha: Annotated[float, Gt(0)] = 4.0
    peer_weight: Annotated[float, Ge(0)] = 0.03
    peer_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    straight_through: bool | None = None
    norm: Literal["length", "layer"] = "length"
    negatives: Literal["uniform", "permuted", "hard"] = "uniform"
    redraw_negatives: bool = True
    overlay: Overlay = "auto"
    label_scale: Annotated[float, Gt(0)] = 1.0
    skip_first: bool = True
    readout: Literal["classifier", "goodness"] = "classifier"
    classifier: bool = True
    readout_lr: Annotated[float, Gt(0)] = 1e-2
    readout_weight_decay: Annotated[float, Ge(0)] = 3e-3
    init: Literal["unit", "torch"] = "unit"

    def readout_rate(self) -> float:
        return self.readout_lr

    def readout_decay(self) -> float:
        return self.readout_weight_decay


class ForwardForward(Trainer):
    """Each block is trained to a high goodness for samples with their label and a low one with a wrong label.

    The hidden layers of the network are the blocks. Its output layer is not used. The label code is added
    beside the input, or overwrites the first C values of images if these never vary. Such images should be
    raw, in [0, 1].
    """

    id = "forward_forward"
    Settings = ForwardForwardSettings
    space: ClassVar[Space] = {
        **STEPS,
        "peer_weight": Range(0.0, 0.3),
        "label_scale": Range(0.1, 10.0, log=True),
        "alpha": Range(1.0, 16.0, log=True, given={"objective": ("symmetric",)}),
        "readout_lr": Range(1e-3, 1e-1, log=True, given={"classifier": (True,)}),
        "readout_weight_decay": Range(1e-5, 1e-1, log=True, given={"classifier": (True,)}),
    }
    settings: ForwardForwardSettings
    _init_warning = ""

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.readout == "classifier" and not s.classifier:
            raise BadValue(
                "readout = 'classifier' with classifier = false: the prediction rule would not be trained; "
                "use readout = 'goodness', or classifier = true"
            )
        if s.negatives == "hard" and not (
            s.classifier and s.schedule == "simultaneous" and s.redraw_negatives
        ):
            raise BadValue(
                "negatives = 'hard': they are drawn by the classifier while it is trained, which requires "
                "classifier = true, schedule = 'simultaneous' and redraw_negatives = true"
            )
        stages, _ = self.stages(s.cut)
        straight = s.peer_weight > 0 if s.straight_through is None else s.straight_through
        norm = {"length": LengthNorm, "layer": RowNorm}[s.norm]
        blocks = [Block(body, self._loss()) for body in overlaid_bodies(stages, norm, straight)]
        if s.init == "unit":
            self._check_init([m for block in blocks for m in _weight_layers(block.body)])
            for k, block in enumerate(blocks):
                self._unit_init(block, k)
        readouts: dict[str, Readout] = {"goodness": GoodnessReadout(s.skip_first)}
        if s.classifier:
            readouts["classifier"] = ClassifierReadout(s.skip_first, norm())
        readouts = {s.readout: readouts.pop(s.readout)} | readouts
        encoding = LabelOverlay(n_classes, s.label_scale, s.negatives, s.redraw_negatives, s.overlay)
        return Cascade(blocks, readouts, encoding)

    @property
    def locality(self) -> str:
        return level_of(bodies(self.cascade.units))

    def _loss(self) -> Goodness:
        s = self.settings
        return Goodness(s.goodness, s.threshold, s.objective, s.alpha, s.peer_weight, s.peer_momentum)

    def _unit_init(self, block: Block, number: int) -> None:
        generator = _seeds.generator(torch.device("cpu"), self.seed, "unit init", number)
        for module in _weight_layers(block.body):
            weight = torch.randn(module.weight.shape, generator=generator) / math.sqrt(module.weight.shape[0])
            with torch.no_grad():
                if _is_trainable(module.weight):
                    module.weight.copy_(weight)
                if module.bias is not None and _is_trainable(module.bias):
                    nn.init.zeros_(module.bias)

    def _check_init(self, layers: Sequence[WeightLayer]) -> None:
        """Set the warning about weights that ``init = "unit"`` replaces, or cannot initialize."""
        names = {module: name or "the net" for name, module in self.net.named_modules()}
        initialized = [m for m in layers if _is_trainable(m.weight)]
        computed = [names[m] for m in layers if not isinstance(m.weight, nn.Parameter)]
        parts = []
        if not all(map(has_default_init, initialized)):
            parts.append(
                f"replaces the weights of {', '.join(names[m] for m in initialized)}, which do not have "
                "torch's default initialization"
            )
        if computed:
            parts.append(f"leaves {', '.join(computed)} unchanged, since their weights are computed")
        self._init_warning = " and ".join(parts)

    def _warn_about_init(self, stacklevel: int) -> None:
        """Warn once, when training starts. A resumed run, or loaded weights, give no warning."""
        text, self._init_warning = self._init_warning, ""
        if text:
            fix = "set init = 'torch' to use the weights of the network"
            warnings.warn(f"init = 'unit' {text}: {fix}", stacklevel=stacklevel)

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        super().load(path, sample_shape)
        self._init_warning = ""

    def prepare(self, run: RunContext) -> History:
        """Warn if the weights of the network were replaced."""
        self._warn_about_init(stacklevel=4)
        return super().prepare(run)

    def step(self, x: Tensor, y: Tensor, number: int | None = None) -> list[Tensor]:
        self._warn_about_init(stacklevel=3)
        return super().step(x, y, number)


def _weight_layers(body: nn.Module) -> list[WeightLayer]:
    return [m for m in body.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


def _is_trainable(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad
