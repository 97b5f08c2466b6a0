"""Model selection: which readouts a stage is evaluated by, and checks for values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._errors import Diverged
from bpfree.core.block import BaseBlock, Block
from bpfree.core.cascade import Cascade
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.schedule import Stage
from bpfree.losses import LocalLoss
from bpfree.metrics import Metric

#: Validation samples on which single blocks are evaluated where that takes a forward pass for each class.
BLOCK_SAMPLES = 500


def selecting_readouts(cascade: Cascade, stage: Stage) -> list[str]:
    """The readouts to evaluate in a stage; the first one selects the best epoch."""
    # In a greedy run the highest block so far may give no class scores.
    if type(cascade.units[stage.stop - 1].loss).scores is LocalLoss.scores:
        return []
    # The scores of a readout of frozen blocks do not change.
    names = sorted(
        _usable(cascade, stage),
        key=lambda name: not cascade.readout(name).depends_on(stage.first, stage.stop),
    )
    return [name for name in names if cascade.readout(name).view == cascade.readout(names[0]).view]


def validate(cascade: Cascade, stage: Stage, evaluator: Evaluator, metric: Metric) -> dict[str, float]:
    """The metric by readout and of each block alone.

    Where only a readout with another, more expensive view scores single blocks, they are evaluated on
    `BLOCK_SAMPLES` samples.
    """
    readouts = selecting_readouts(cascade, stage)
    values = evaluator.evaluate(metric, readouts, stage.stop)
    if not any(cascade.readout(name).scores_blocks for name in readouts):
        others = [name for name in _usable(cascade, stage) if cascade.readout(name).scores_blocks]
        on_few = evaluator.first(BLOCK_SAMPLES).evaluate(metric, others[:1], stage.stop)
        values |= {name: value for name, value in on_few.items() if name not in others}
    return values


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


def parts(blocks: Sequence[BaseBlock]) -> list[Block]:
    """The blocks with one loss each; a joint block is replaced by its inner blocks."""
    return [part for block in blocks for part in block.parts]


def is_finite(module: nn.Module) -> Tensor:
    """Whether all parameters of ``module`` and all statistics of its normalizations are finite, ``[]``."""
    tensors: list[Tensor | None] = list(module.parameters())
    for norm in module.modules():
        # Other buffers may be infinite on purpose, such as masks.
        if isinstance(norm, _NormBase) and norm.track_running_stats:
            tensors += [norm.running_mean, norm.running_var]
    numbers = [t.detach() for t in tensors if t is not None and (t.is_floating_point() or t.is_complex())]
    return nn.utils.get_total_norm(numbers, float("inf")).isfinite()


def check_finite(stage: str, broken: Sequence[float], epoch: int, lr: float) -> None:
    """Check outputs and weights after ``epoch``, counted from 0: a finite loss may hide what they became.

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
            f"or infinite in epoch {epoch + 1}, but not its loss: lower lr ({lr}), or use precision 'float32'"
        )


def _usable(cascade: Cascade, stage: Stage) -> list[str]:
    """The readouts without those that a later stage trains."""
    return [name for name in cascade.readouts if stage.readouts or not cascade.readout(name).learns]
