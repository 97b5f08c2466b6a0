"""Ridge regression on a block's output, solved at the end of one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._memory import check_memory
from bpfree.losses.base import OnePassLoss
from bpfree.losses.cross_entropy import FEATURES, flat_features
from bpfree.losses.dual_ridge import DualRidge
from bpfree.losses.registry import register_loss
from bpfree.losses.ridge import RidgeAccumulator

LAMBDAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@register_loss("closed_form")
class ClosedForm(OnePassLoss):
    """Squared error of class scores to one-hot targets, minimised exactly by `RidgeAccumulator`.

    Each step adds its rows to the sums; the end of the pass solves, without any gradient. Of several
    penalties the one with the best accuracy on validation data is kept, the larger of equals; without
    validation data it is the middle one.

    Args:
        lam: Penalties to choose from, each in units of the features' mean square.
        bias: Whether to fit an intercept.
        pool: Side of the map that image-like outputs are pooled to, by root mean square: the cost grows with
            the square of the number of features. Other outputs are left alone.
        dual: Whether to solve among the samples, see `DualRidge`: for fewer samples than features.
        keep: Whether `accumulator` stays after the pass, to merge and to forget samples; it holds d^2
            float64 values.
        features: Largest number of features without ``pool``, see
            `bpfree.losses.cross_entropy.flat_features`; None: any number.

    Raises:
        BadValue: If there is no penalty or a negative one; when it is built, if memory cannot hold the sums.

    Attributes:
        accumulator: The sums of the running pass; None outside, unless kept.
        chosen: The penalty that was kept, None before.
    """

    def __init__(
        self,
        lam: Sequence[float] = LAMBDAS,
        bias: bool = True,
        pool: int | None = None,
        keep: bool = False,
        dual: bool = False,
        features: Annotated[int, Ge(1)] | None = FEATURES,
    ) -> None:
        super().__init__()
        if not lam or min(lam) < 0:
            raise BadValue(f"lam = {list(lam)}: expected one or more penalties of at least 0")
        self.lam, self.bias, self.keep, self.dual = sorted(lam, reverse=True), bias, keep, dual
        self.pool, self.limit = pool, features
        self.accumulator: RidgeAccumulator | DualRidge | None = None
        self.chosen: float | None = None

    def build(self, output: Tensor, n_classes: int) -> None:
        self.features = flat_features(output, self.pool, limit=self.limit, axis=self.feature_axis)
        n = self.features(output).shape[1]
        if not self.dual:
            # The sums, and at the end of the pass a copy of them and its factor.
            what = f"ridge regression on {n} features: its sums"
            check_memory(3 * 8 * (n + 1) ** 2, output.device, what, "pool the features, or set dual = true")
        self.linear = nn.Linear(n, n_classes, self.bias, device=output.device)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter).requires_grad_(False)

    def scores(self, output: Tensor) -> Tensor:
        return self.linear(self.features(output))  # type: ignore[no-any-return]

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        scores = self.scores(output)
        return F.mse_loss(scores, F.one_hot(target, scores.shape[1]).to(scores.dtype))

    def begin(self) -> None:
        self.accumulator = None

    def accumulate(self, output: Tensor, target: Tensor) -> None:
        if self.accumulator is None:
            sizes = (self.linear.in_features, self.linear.out_features, self.bias)
            self.accumulator = DualRidge(*sizes) if self.dual else RidgeAccumulator(*sizes, output.device)
        self.accumulator.add(self.features(output), target)

    @torch.no_grad()
    def solve(self, validation: Iterable[tuple[Tensor, Tensor]] | None) -> None:
        assert self.accumulator is not None
        lams = self.lam if validation is not None else [self.lam[len(self.lam) // 2]]
        candidates = self.accumulator.solve_all(lams)
        best = self._best(candidates, validation) if len(lams) > 1 and validation is not None else 0
        weight, bias = candidates[best]
        self.linear.weight.copy_(weight.T)
        if self.bias:
            self.linear.bias.copy_(bias)
        self.chosen = lams[best]
        if not self.keep:
            self.accumulator = None

    def _best(
        self, candidates: list[tuple[Tensor, Tensor]], validation: Iterable[tuple[Tensor, Tensor]]
    ) -> int:
        """The number of the weights and intercepts that classify most validation rows rightly."""
        weights = torch.stack([weight for weight, _ in candidates]).to(self.linear.weight)
        biases = torch.stack([bias for _, bias in candidates]).to(self.linear.weight).unsqueeze(1)
        right = torch.zeros(len(candidates), dtype=torch.long, device=weights.device)
        for output, target in validation:
            scores = self.features(output) @ weights + biases
            right += (scores.argmax(2) == target).sum(1)
        return int(right.argmax())
