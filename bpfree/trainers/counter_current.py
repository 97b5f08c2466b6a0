"""Counter-current learning (Kao and Hariharan, arXiv 2409.19841)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock, Block, send_feedback
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout
from bpfree.core.rule_names import make_rule
from bpfree.engine.conditioning import condition
from bpfree.engine.settings import OptimizerName, TrainerSettings
from bpfree.losses import CounterCurrent, PrototypeOutput
from bpfree.losses.counter_current import Form
from bpfree.nn import ACTIVATIONS
from bpfree.trainers.alignment import between_within, linear_cka, weight_alignment
from bpfree.trainers.base import Trainer, bodies, keep_maps, level_of
from bpfree.trainers.space import STEPS, Choice, Range, Space


@dataclass(frozen=True, kw_only=True)
class CounterCurrentSettings(TrainerSettings):
    """Settings of counter-current learning. The defaults are those of the paper for MLPs.

    Attributes:
        lr: Learning rate of the forward network.
        feedback_lr: Learning rate of the feedback network; None: as ``lr``; 0: it is not trained.
        loss: ``dot``, ``cosine`` or ``decorrelated``, see `bpfree.losses.CounterCurrent`.
        k: Scale of ``dot``.
        base: Width at which the scale of ``dot`` is k.
        weight: Weight of the cross term of the cosine forms.
        decorrelation: Weight of the decorrelation terms.
        targets: Feedback that outputs are compared with: ``prototypes``, one for each class, or ``samples``,
            one for the label of each sample in the batch.
        clip: Largest norm of the gradients of a block, separately for its forward and its feedback layer;
            None: no clipping.
        centralize: Whether the mean is subtracted from gradients of matrices and filters before clipping.
        warmup: Number of steps over which the weights of all losses increase to 1.
        input_pair: Whether the feedback network has a layer for the input too, and its output is compared
            with the input. Predictions do not depend on it.
        joint: Whether one optimizer takes a step on the sum of all losses, with gradient norms over all
            blocks, as in the reference code.
        gate: Predicted probability of the correct class above which a sample is left out of the pair losses;
            None: no sample is left out. It requires ``joint``.
        gradients: ``autograd``, or ``analytic`` for closed-form gradients (MLPs with the loss ``dot`` on
            prototypes).
    """

    lr: Annotated[float, Gt(0)] = 1.0
    feedback_lr: Annotated[float, Ge(0)] | None = None
    optimizer: OptimizerName = "sgd"
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    loss: Form = "dot"
    k: Annotated[float, Gt(0)] = 0.5
    base: Annotated[float, Gt(0)] = 256.0
    weight: Annotated[float, Gt(0)] = 1.0
    decorrelation: Annotated[float, Ge(0)] = 0.5
    targets: Literal["prototypes", "samples"] = "prototypes"
    clip: Annotated[float, Gt(0)] | None = 1.0
    centralize: bool = False
    warmup: Annotated[int, Ge(0)] = 0
    input_pair: bool = False
    joint: bool = False
    gate: Annotated[float, Gt(0), Lt(1)] | None = None
    gradients: Literal["autograd", "analytic"] = "autograd"

    def feedback_rate(self) -> float:
        return self.lr if self.feedback_lr is None else self.feedback_lr


class CounterCurrentLearning(Trainer):
    """A feedback network computes, from top to bottom, prototypes of the classes for each block's output.

    Block l has the forward layer U_l and the feedback layer V_(l+1), which are trained to agree. The output
    layer is trained by cross-entropy. Only the forward network is used for predictions.
    """

    id = "counter_current"
    Settings = CounterCurrentSettings
    space: ClassVar[Space] = {
        **STEPS,
        "lr": Range(1e-2, 10.0, log=True),
        "momentum": Choice((0.0, 0.5, 0.9), given={"optimizer": ("sgd",)}),
        "k": Range(0.05, 5.0, log=True, given={"loss": ("dot",)}),
        "weight": Range(0.1, 10.0, log=True, given={"loss": ("cosine", "decorrelated")}),
        "decorrelation": Range(0.0, 2.0, given={"loss": ("decorrelated",)}),
    }
    settings: CounterCurrentSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        self._check()
        stages, output = keep_maps(*self.stages(s.cut))
        layers = [_layer(stage) for stage in stages] + [_layer(output)]
        blocks = [
            Block(stage, self._pair(above, _activation(stage)), rule=make_rule(s.gradients))
            for stage, above in zip(stages, layers[1:], strict=True)
        ]
        if s.input_pair:
            blocks.insert(0, Block(nn.Identity(), self._pair(layers[0], None), rule=make_rule(s.gradients)))
        blocks.append(Block(nn.Identity(), PrototypeOutput(output, s.warmup), rule=make_rule(s.gradients)))
        units: list[BaseBlock] = [GatedBlock(blocks, s.gate)] if s.joint else [*blocks]
        return Cascade(units, {"last": BlockReadout()}, source=self.net)

    def _check(self) -> None:
        s = self.settings
        if s.schedule == "greedy":
            raise BadValue(
                "schedule = 'greedy': feedback comes from blocks that are trained; use 'simultaneous' or "
                "'pipelined'"
            )
        if s.gate is not None and not s.joint:
            raise BadValue(
                f"gate = {s.gate} requires joint = true, since it uses the output on the same batch"
            )
        if s.gradients == "analytic" and (s.loss != "dot" or s.targets != "prototypes" or s.joint):
            raise BadValue(
                f"gradients = 'analytic' with loss = {s.loss!r}, targets = {s.targets!r} and joint = "
                f"{str(s.joint).lower()}: it requires loss = 'dot', targets = 'prototypes' and joint = false"
            )

    def _pair(self, above: nn.Module, activation: nn.Module | None) -> CounterCurrent:
        s = self.settings
        per_sample = s.targets == "samples"
        return CounterCurrent(
            above, activation, s.loss, s.k, s.base, s.weight, s.decorrelation, per_sample, s.warmup
        )

    def condition(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        condition(optimizers, self.settings.clip, self.settings.centralize)

    @property
    def locality(self) -> str:
        best = "L3" if self.settings.gradients == "analytic" else "L2"
        return level_of(bodies(self.cascade.units), "L1" if self.settings.joint else best)

    @torch.no_grad()
    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, object]:
        """Measures of agreement for each pair of a block and its feedback, bottom first.

        Returns:
            ``alignment``, cosine of U_(l+1) with the transposed V_(l+1); ``between_within``, between-class
            over within-class variance of the block's output; ``cka``, linear CKA of the output with the
            prototypes of the labels.
        """
        blocks = [part for block in self.cascade.units for part in block.parts]
        alignment: list[float] = []
        ratios: list[float] = []
        cka: list[float] = []
        rows = x
        for block, feedback in zip(blocks, send_feedback(blocks)[0], strict=True):
            rows = block(rows)
            if isinstance(block.loss, CounterCurrent) and feedback is not None:
                output = rows.flatten(1)
                alignment.append(weight_alignment(*block.loss.weights()))
                ratios.append(between_within(output, y))
                cka.append(linear_cka(output, feedback.flatten(1)[y]))
        return {"alignment": alignment, "between_within": ratios, "cka": cka}


class GatedBlock(JointBlock):
    """Blocks that are updated together, without gradients between them.

    Args:
        blocks: The inner blocks, bottom first.
        gate: Probability of the correct class above which the output for a row is 0 for all losses except the
            top one; None: never.
    """

    def __init__(self, blocks: Sequence[Block], gate: float | None) -> None:
        super().__init__(blocks, [1.0] * len(blocks), detach=True)
        self.gate = gate

    def loss_outputs(self, outputs: list[Tensor], target: Tensor) -> list[Tensor]:
        if self.gate is None:
            return outputs
        with torch.no_grad():
            scores = self.losses[-1].scores(outputs[-1])
            assert scores is not None
            included = scores.softmax(1).gather(1, target.unsqueeze(1)) <= self.gate
        gated = [output * included.view(-1, *[1] * (output.ndim - 1)) for output in outputs[:-1]]
        return [*gated, outputs[-1]]


def _layer(stage: nn.Module) -> nn.Module:
    """The only layer with weights of a stage."""
    layers = [m for m in stage.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if len(layers) != 1:
        raise BadValue(
            f"a block has {len(layers)} linear or convolutional layers: expected one in counter-current "
            "learning; use cut = 'weight'"
        )
    return layers[0]


def _activation(stage: nn.Module) -> nn.Module | None:
    return next((m for m in stage.modules() if type(m) in ACTIVATIONS.values()), None)
