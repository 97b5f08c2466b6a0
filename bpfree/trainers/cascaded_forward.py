"""Cascaded-Forward (Zhao et al., arXiv 2303.09728)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import nn

from bpfree._errors import BadValue
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import ReadoutName, make_readouts
from bpfree.core.rule_names import make_rule
from bpfree.core.update_rules import OnePassSolve, UpdateRule
from bpfree.data import TensorData
from bpfree.engine.history import History
from bpfree.engine.run_state import Checkpoint, Hooks
from bpfree.engine.schedule import Schedule
from bpfree.engine.settings import FitSettings, TrainerSettings
from bpfree.losses import ClosedForm, LocalCrossEntropy, LocalLoss, LocalSparsemax
from bpfree.losses.closed_form import LAMBDAS
from bpfree.losses.cross_entropy import FEATURES
from bpfree.trainers.base import Trainer, keep_maps
from bpfree.trainers.direct_feedback import DirectFeedbackAlignment, LastBlock
from bpfree.trainers.space import STEPS, Range, Space

#: Settings that training blocks shares with training predictors.
SHARED = (
    "optimizer",
    "momentum",
    "lr_schedule",
    "precision",
    "channels_last",
    "compile",
    "cut",
    "last_block",
    "feedback_seed",
)

#: Where predictors take steps, and where blocks are trained.
STEPPED = {"predictor": ("cross_entropy", "sparsemax")}
TRAINED = {"blocks": ("dfa",)}


@dataclass(frozen=True, kw_only=True)
class CascadedForwardSettings(TrainerSettings):
    """Settings of Cascaded-Forward; ``lr``, ``weight_decay`` and ``epochs`` are those of the predictors.

    Attributes:
        schedule: ``greedy`` keeps the features of one block at a time and trains each predictor on them;
            ``simultaneous`` makes all features anew at each step, which is one pass for the closed form.
        predictor: Loss of the predictors: softmax cross-entropy, sparsemax loss, or squared error in closed
            form (then there are no steps: ``lr`` and ``epochs`` have no meaning).
        bias: Whether predictors have a bias.
        gradients: ``analytic`` takes the closed form of each step of the first two.
        lam: Penalties that the closed form chooses from.
        pool: For each block, the side of the map that its features are pooled to, by their root mean square;
            None for all, or in the list: as they are.
        head_features: Largest number of features of a predictor where ``pool`` does not say: larger maps are
            pooled by their root mean square until they have as many; None: any number.
        keep: Whether the closed form's sums stay in `losses`, to forget samples later.
        readout: The prediction rule.
        blocks: ``random``, or trained by ``dfa`` before the predictors, with the output layer's help.
        block_epochs: Passes over the data that train blocks.
        block_lr: Learning rate of blocks.
        block_weight_decay: Weight decay of blocks.
        last_block: Whether the last block takes its exact local gradient, see `DirectFeedbackAlignment`.
        feedback_seed: Seed of the feedback matrices.
    """

    schedule: Schedule = "greedy"
    predictor: Literal["cross_entropy", "sparsemax", "closed_form"] = "cross_entropy"
    bias: bool = True
    gradients: Literal["autograd", "analytic"] = "autograd"
    lam: list[float] = field(default_factory=lambda: list(LAMBDAS))
    pool: list[Annotated[int, Ge(1)] | None] | None = None
    head_features: Annotated[int, Ge(1)] | None = FEATURES
    keep: bool = False
    readout: ReadoutName = "sum_probabilities"
    blocks: Literal["random", "dfa"] = "random"
    block_epochs: Annotated[int, Ge(1)] = 5
    block_lr: Annotated[float, Gt(0)] = 5e-4
    block_weight_decay: Annotated[float, Ge(0)] = 0.0
    last_block: LastBlock = "exact"
    feedback_seed: Annotated[int, Ge(0)] = 0


class CascadedForward(Trainer):
    """A linear predictor on every block; blocks stay random, or are trained once and frozen.

    The blocks are fixed fronts: no gradient of a predictor enters one, and their batch normalisation gets
    its statistics from one pass over the training data. The prediction is the sum of the predictors'
    probabilities. The network's output layer takes no part, except in training the blocks.
    """

    id = "cafo"
    Settings = CascadedForwardSettings
    space: ClassVar[Space] = {
        **{name: replace(dimension, given=STEPPED) for name, dimension in STEPS.items()},
        "block_lr": Range(1e-5, 1e-1, log=True, given=TRAINED),
        "block_weight_decay": Range(1e-6, 1e-2, log=True, given=TRAINED),
    }
    settings: CascadedForwardSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, _ = keep_maps(*self.stages(s.cut))
        pools = s.pool if s.pool is not None else [None] * len(stages)
        if len(pools) != len(stages):
            raise BadValue(f"pool = {pools}: expected {len(stages)} sides, one for each block")
        if s.gradients == "analytic" and any(pool is not None for pool in pools):
            raise BadValue("pool with gradients = 'analytic': leave one of them out")
        blocks = [
            Block(nn.Identity(), self._predictor(pool), stage, self._rule())
            for stage, pool in zip(stages, pools, strict=True)
        ]
        return Cascade(blocks, make_readouts(s.readout, [block.loss for block in blocks]))

    def _rule(self) -> UpdateRule[Any]:
        s = self.settings
        return OnePassSolve() if s.predictor == "closed_form" else make_rule(s.gradients)

    def _predictor(self, pool: int | None) -> LocalLoss:
        s = self.settings
        if s.predictor == "closed_form":
            return ClosedForm(s.lam, s.bias, pool, s.keep, features=s.head_features)
        kind = LocalSparsemax if s.predictor == "sparsemax" else LocalCrossEntropy
        return kind(bias=s.bias, pool=pool, features=s.head_features)

    @property
    def locality(self) -> str:
        if self.settings.blocks == "dfa":
            return self._dfa().locality
        return "L3" if not any(block.rule.autograd for block in self.cascade.units) else "L2"

    def fit(self, train: Any, validation: Any = None, **options: Any) -> History:
        """Train the blocks if they are to be trained, then the predictors; see `Trainer.fit`."""
        history = super().fit(train, validation, **options)
        checkpoint = options.get("checkpoint")
        if checkpoint is not None:
            path = checkpoint.path if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
            _beside(path).unlink(missing_ok=True)
        return history

    def front_trainer(self) -> Trainer | None:
        s = self.settings
        return None if s.blocks == "random" else self._dfa()

    def _dfa(self) -> DirectFeedbackAlignment:
        s = self.settings
        return DirectFeedbackAlignment(
            self.net,
            seed=self.seed,
            device=self.device,
            progress=False,
            lr=s.block_lr,
            weight_decay=s.block_weight_decay,
            **{name: getattr(s, name) for name in SHARED},
        )

    def prepare(
        self,
        train: TensorData,
        validation: TensorData | None,
        fit: FitSettings,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
    ) -> History:
        """Train the blocks by direct feedback alignment, through a trainer of their own."""
        trainer = self.front_trainer()
        if trainer is None:
            return History()
        own = None if checkpoint is None else replace(checkpoint, path=_beside(checkpoint.path))
        names = ("batch_size", "drop_last", "restore_best", "eval_every")
        rest: dict[str, Any] = {name: getattr(fit, name) for name in names}
        rest["epochs"] = self.settings.block_epochs
        history = trainer.fit(train, validation, checkpoint=own, hooks=hooks, **rest)
        for row in history.rows:
            row["stage"] = "blocks by dfa"
        for stage in history.stages:
            stage["name"] = "blocks by dfa"
        return history


def _beside(path: Path) -> Path:
    """Where the state of the blocks' own training is kept while it runs."""
    return path.with_name(f"{path.name}.blocks")
