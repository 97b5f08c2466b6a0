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
from bpfree.data import TensorData
from bpfree.encodings.label_overlay import LabelOverlay, Overlay, overlaid_bodies
from bpfree.engine.history import History
from bpfree.engine.run_state import Checkpoint, Hooks
from bpfree.engine.settings import FitSettings, LRSchedule, OptimizerName, TrainerSettings
from bpfree.losses import Goodness
from bpfree.nn import LengthNorm, RowNorm
from bpfree.nn.weights import has_default_init
from bpfree.trainers.base import Trainer, bodies, level_of
from bpfree.trainers.space import STEPS, Range, Space

Weighted = nn.Linear | nn.modules.conv._ConvNd


@dataclass(frozen=True, kw_only=True)
class ForwardForwardSettings(TrainerSettings):
    """Settings of Forward-Forward; the defaults are the supervised recipe of the reference code.

    Attributes:
        goodness: Sum or mean of squares.
        threshold: theta in the unit of the goodness; None: the width for the sum, 2 for the mean.
        objective: ``threshold`` (logistic) or ``symmetric`` (SymBa).
        alpha: Slope of the symmetric loss.
        peer_weight: Weight of peer normalisation.
        peer_momentum: Decay of its running mean.
        straight_through: Whether ReLU's backward is the identity; None: where ``peer_weight`` > 0.
        norm: What stands between blocks, and before the classifier: ``length`` divides each row by the root
            of its mean square; ``layer`` takes off its mean before. Either hides the goodness below.
        negatives: How wrong labels are drawn, see `bpfree.encodings.label_overlay.LabelOverlay`.
        redraw_negatives: At every step, or once for the run (then a greedy schedule can keep features).
        overlay: Where the label goes. ``auto``: over the first C values of images, if these values are the
            same in all training samples (the border of MNIST), and else beside the input, as C more values;
            ``beside``; ``force``: over the first C values, whatever they are, with a warning if they vary.
        label_scale: Value of a label code over the input, where 1 is the range of raw pixels; of one beside
            it, its length, where 1 is the root mean square length of what a unit of the first layer sees.
        skip_first: Whether readouts leave out the first block.
        readout: The prediction rule; accuracy under the other is reported beside it.
        classifier: Whether the classifier readout is trained; it must be where it is the prediction rule.
        readout_lr: Learning rate of the classifier readout.
        readout_weight_decay: Its weight decay.
        init: ``unit``: weights are drawn anew, normal with standard deviation 1/sqrt(fan out), biases zero;
            layers that are frozen, and weights that are computed (weight normalization), stay as they are,
            and a warning says so where the network was not as torch draws it. ``torch``: as the network came.
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
    """Each block learns to answer strongly to images under their own label and weakly under a wrong one.

    The network's hidden layers become the blocks; its output layer takes no part. The label stands beside
    the input, or overwrites the first C values of images where these never vary: such images should be raw,
    in [0, 1].
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
    _of_init = ""

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if s.readout == "classifier" and not s.classifier:
            raise BadValue(
                "readout = 'classifier' with classifier = false: nothing would train the prediction rule"
            )
        if s.negatives == "hard" and not (
            s.classifier and s.schedule == "simultaneous" and s.redraw_negatives
        ):
            raise BadValue(
                "negatives = 'hard': drawn from the classifier while it trains: needs classifier = true, "
                "schedule = 'simultaneous' and redraw_negatives = true"
            )
        stages, _ = self.stages(s.cut)
        straight = s.peer_weight > 0 if s.straight_through is None else s.straight_through
        norm = {"length": LengthNorm, "layer": RowNorm}[s.norm]
        blocks = [Block(body, self._loss()) for body in overlaid_bodies(stages, norm, straight)]
        if s.init == "unit":
            self._note_init([m for block in blocks for m in _drawn(block.body)])
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
        for module in _drawn(block.body):
            drawn = torch.randn(module.weight.shape, generator=generator) / math.sqrt(module.weight.shape[0])
            with torch.no_grad():
                if _is_free(module.weight):
                    module.weight.copy_(drawn)
                if module.bias is not None and _is_free(module.bias):
                    nn.init.zeros_(module.bias)

    def _note_init(self, layers: Sequence[Weighted]) -> None:
        """Note, for `_warn_of_init`, if weights that torch did not draw are lost, or some are not drawn."""
        names = {module: name or "the net" for name, module in self.net.named_modules()}
        drawn = [m for m in layers if _is_free(m.weight)]
        kept = [names[m] for m in layers if not isinstance(m.weight, nn.Parameter)]
        notes = []
        if not all(map(has_default_init, drawn)):
            layers_drawn = ", ".join(names[m] for m in drawn)
            notes.append(
                f"draws the weights of {layers_drawn} anew, though they were trained or drawn in another "
                "way than torch's"
            )
        if kept:
            notes.append(f"leaves {', '.join(kept)}, whose weights are computed")
        self._of_init = " and ".join(notes)

    def _warn_of_init(self, stacklevel: int) -> None:
        """Warn once, when training begins, not of a run that goes on or of weights that were loaded."""
        text, self._of_init = self._of_init, ""
        if text:
            fix = "give init = 'torch' to keep the network as it is"
            warnings.warn(f"init = 'unit' {text}: {fix}", stacklevel=stacklevel)

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        super().load(path, sample_shape)
        self._of_init = ""

    def prepare(
        self,
        train: TensorData,
        validation: TensorData | None,
        fit: FitSettings,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
    ) -> History:
        """Nothing but a warning, where weights were drawn anew and should perhaps not have been."""
        self._warn_of_init(stacklevel=4)
        return super().prepare(train, validation, fit, checkpoint, hooks)

    def step(self, x: Tensor, y: Tensor, number: int | None = None) -> list[Tensor]:
        self._warn_of_init(stacklevel=3)
        return super().step(x, y, number)


def _drawn(body: nn.Module) -> list[Weighted]:
    return [m for m in body.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


def _is_free(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad
