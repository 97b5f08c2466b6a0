"""By which readouts a stage is judged, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._errors import Diverged
from bpfree.cascade import Block, Cascade, JointBlock
from bpfree.losses import LocalLoss
from bpfree.metrics import Metric
from bpfree.schedules import Stage
from bpfree.trainers.evaluation import Evaluator

#: Validation samples on which single blocks are judged where that takes a forward pass per class.
BLOCK_SAMPLES = 500


def judges(cascade: Cascade, stage: Stage) -> list[str]:
    """The readouts to evaluate in a stage, the one that selects first."""
    # In a greedy run the highest block so far may be one that says nothing of classes.
    if type(cascade.units[stage.stop - 1].loss).scores is LocalLoss.scores:
        return []
    # A readout of blocks that are frozen already has nothing to select by.
    names = sorted(
        _usable(cascade, stage), key=lambda name: not cascade.readout(name).concerns(stage.first, stage.stop)
    )
    return [name for name in names if cascade.readout(name).view == cascade.readout(names[0]).view]


def validate(cascade: Cascade, stage: Stage, evaluator: Evaluator, metric: Metric) -> dict[str, float]:
    """The metric by readout and of each block alone.

    Where only a readout with another, dearer view can tell blocks apart, a few samples must do.
    """
    judging = judges(cascade, stage)
    found = evaluator.evaluate(metric, judging, stage.stop)
    if not any(cascade.readout(name).tells_blocks for name in judging):
        tellers = [name for name in _usable(cascade, stage) if cascade.readout(name).tells_blocks]
        few = evaluator.first(BLOCK_SAMPLES).evaluate(metric, tellers[:1], stage.stop)
        found |= {name: value for name, value in few.items() if name not in tellers}
    return found


def check_losses(stage: str, means: Sequence[float], epoch: int, lr: float) -> None:
    """Check the mean losses of ``epoch``, counted from 0.

    Raises:
        Diverged: naming the first that is not finite.
    """
    bad = [k for k, value in enumerate(means) if not math.isfinite(value)]
    if bad:
        raise Diverged(
            f"the loss of {stage}, part {bad[0] + 1} of {len(means)}, became {means[bad[0]]} "
            f"in epoch {epoch + 1}: lower lr ({lr}), or use precision 'float32'"
        )


def parts(blocks: Sequence[Block]) -> list[Block]:
    """The blocks that have a loss each, those inside joint blocks by themselves."""
    return [part for block in blocks for part in (block.inner if isinstance(block, JointBlock) else [block])]


def is_finite(module: nn.Module) -> Tensor:
    """Whether all parameters of ``module`` and all statistics of its normalizations are finite, ``[]``."""
    found: list[Tensor | None] = list(module.parameters())
    for norm in module.modules():
        # Other buffers may be infinite with good reason, as masks are.
        if isinstance(norm, _NormBase) and norm.track_running_stats:
            found += [norm.running_mean, norm.running_var]
    numbers = [t.detach() for t in found if t is not None and (t.is_floating_point() or t.is_complex())]
    return nn.utils.get_total_norm(numbers, float("inf")).isfinite()


def check_finite(stage: str, broken: Sequence[float], epoch: int, lr: float) -> None:
    """Check outputs and weights after ``epoch``, counted from 0: a loss may hide what they became.

    Args:
        stage: Name of the stage.
        broken: For each loss of the stage, more than 0 where its outputs or weights are not finite.
        epoch: The epoch.
        lr: The setting, for the message.

    Raises:
        Diverged: naming the first.
    """
    bad = [k for k, value in enumerate(broken) if value > 0]
    if bad:
        raise Diverged(
            f"the outputs or the weights of {stage}, part {bad[0] + 1} of {len(broken)}, became NaN "
            f"or infinite in epoch {epoch + 1}, its loss did not: lower lr ({lr}), or use precision 'float32'"
        )


def _usable(cascade: Cascade, stage: Stage) -> list[str]:
    """The readouts that are not waiting to be trained in a later stage."""
    return [name for name in cascade.readouts if stage.readouts or not cascade.readout(name).learns]
