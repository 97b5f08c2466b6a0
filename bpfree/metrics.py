"""How predictions are scored: a metric has a name, a direction and a function of scores and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue


@dataclass(frozen=True)
class Metric:
    """A metric of predictions; one of your own is given to a trainer class as its attribute ``metric``.

    Attributes:
        name: Key under which `Trainer.evaluate` and the rows of a benchmark store the value.
        function: Computes the value from scores ``[N, ...]`` and targets.
        greater_is_better: Whether the larger value is the better one.
        share: Whether values lie between 0 and 1; reports show them in percent.
        chance: Computes the value of a prediction that ignores its input, from the targets; None if there is
            no such value.
        label: Name in the headings of reports; by default ``name``.
    """

    name: str
    function: Callable[[Tensor, Tensor], float]
    greater_is_better: bool = True
    share: bool = False
    chance: Callable[[Tensor], float] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise BadValue(
                f"Metric name = {self.name!r}: expected an identifier, for example 'top5_accuracy'"
            )
        object.__setattr__(self, "label", self.label or self.name)

    def __call__(self, scores: Tensor, targets: Tensor) -> float:
        """The value for ``scores [N, ...]`` and ``targets``."""
        return self.function(scores, targets)

    def signed(self, value: float) -> float:
        """``value``, negated if smaller is better: of two signed values the larger is the better one."""
        return value if self.greater_is_better else -value


def accuracy(scores: Tensor, y: Tensor) -> float:
    """Share of rows whose largest score is at ``y``; ``scores [N, C]``, ``y [N]``.

    Raises:
        BadValue: For other shapes.
    """
    if scores.ndim != 2 or y.ndim != 1:
        raise BadValue(
            f"accuracy of scores {list(scores.shape)} and targets {list(y.shape)}: expected [N, C] and [N]; "
            "give the trainer another metric, for example trainer.metric = bpfree.metrics.MSE"
        )
    return int((scores.argmax(1) == y).sum()) / len(y)


def largest_class(y: Tensor) -> float:
    """Share of the most frequent label among ``y [N]``: the accuracy of the best constant prediction."""
    return int(y.bincount().max()) / len(y)


def roc_auc(scores: Tensor, y: Tensor) -> float:
    """Area under the ROC curve of ``scores [N, 1]`` against binary labels ``y [N]``.

    Raises:
        BadValue: If all labels are equal, so that the area is undefined.
    """
    from sklearn.metrics import roc_auc_score

    if y.min() == y.max():
        raise BadValue(
            f"all {len(y)} pairs have the label {int(y[0])}: the area under the ROC needs edges (1) and "
            "pairs that are none (0)"
        )
    return float(roc_auc_score(y.cpu().numpy(), scores.squeeze(1).cpu().numpy()))


def mse(scores: Tensor, targets: Tensor) -> float:
    """Mean squared error of ``scores`` against ``targets`` of the same shape."""
    return F.mse_loss(scores, targets).item()


def _half(_: Tensor) -> float:
    return 0.5


ACCURACY = Metric("accuracy", accuracy, share=True, chance=largest_class)
ROC_AUC = Metric("roc_auc", roc_auc, share=True, chance=_half, label="ROC AUC")
MSE = Metric("mse", mse, greater_is_better=False, label="mean squared error")

#: The metrics of bpfree's own trainers, by name.
METRICS = {metric.name: metric for metric in (ACCURACY, ROC_AUC, MSE)}
