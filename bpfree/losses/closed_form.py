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
    """Squared error between class scores and one-hot targets, minimized exactly by `RidgeAccumulator`.

    Each step adds its rows to the sums. At the end of the pass the weights are computed from the sums,
    without gradients. If several penalties are given, the one with the best accuracy on validation data is
    used, and the larger one of a tie; without validation data the middle one is used.

    Args:
        lam: Penalties to choose from, in units of the features' mean square.
        bias: Whether to fit an intercept.
        pool: Side of the map that image-like outputs are pooled to, by root mean square: the cost grows with
            the square of the number of features. Other outputs are not pooled.
        keep: Whether `accumulator` is available after the pass, to merge it with others and to remove
            samples. It has d^2 float64 values.
        dual: Whether to solve the dual problem, see `DualRidge`: for fewer samples than features.
        features: Largest number of features without ``pool``, see
            `bpfree.losses.cross_entropy.flat_features`; None: any number.

    Raises:
        BadValue: If there is no penalty or a negative one; in `build`, if the sums do not fit into memory.

    Attributes:
        accumulator: The sums during a pass; otherwise None, unless ``keep`` is set.
        chosen: The penalty that was chosen in the last pass; None before.
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
            # The sums, and at the end of the pass a copy of them and its Cholesky factor.
            what = f"ridge regression on {n} features: its sums"
            check_memory(3 * 8 * (n + 1) ** 2, output.device, what, "pool the features, or set dual = true")
        self.linear = nn.Linear(n, n_classes, self.bias, device=output.device)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter).requires_grad_(False)

    def scores(self, output: Tensor) -> Tensor:
        result: Tensor = self.linear(self.features(output))
        return result

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
        """Return the index of the candidate with the largest number of correct validation rows."""
        weights = torch.stack([weight for weight, _ in candidates]).to(self.linear.weight)
        biases = torch.stack([bias for _, bias in candidates]).to(self.linear.weight).unsqueeze(1)
        correct = torch.zeros(len(candidates), dtype=torch.long, device=weights.device)
        for output, target in validation:
            scores = self.features(output) @ weights + biases
            correct += (scores.argmax(2) == target).sum(1)
        return int(correct.argmax())
