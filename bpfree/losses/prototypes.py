"""Cross-entropy on the similarity of a row and the prototype of each class."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.graphs.graph import unit_rows
from bpfree.losses.base import ScoringLoss, StatefulFeedbackLoss
from bpfree.losses.cross_entropy import FEATURES, Pooling, flat_features
from bpfree.losses.registry import register_loss
from bpfree.nn import at_least_float32

Similarity = Literal["dot", "cosine"]


class ClassPrototypes(ScoringLoss):
    """Single-forward loss of Park et al. (arXiv 2403.11004), section 4.

    With ``h_i`` the output for a node and ``c_k`` the prototype of class k::

        logits_ik = <h_i, c_k> / temperature              # or the cosine of the two
        loss = mean over the labeled rows of CE(softmax(logits_i), y_i)

    The last C rows of the output are those of the virtual nodes, and are the prototypes. Learnable prototypes
    are parameters of the loss, and all rows are samples. A target of -1 means that a row has no label.

    Args:
        n_classes: Number of classes C.
        learnable: Whether prototypes are parameters.
        similarity: ``"dot"`` or ``"cosine"``.
        temperature: Divisor of the similarity.

    Raises:
        BadValue: If the temperature is not positive.
    """

    def __init__(
        self,
        n_classes: int,
        learnable: bool = False,
        similarity: Similarity = "dot",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise BadValue(f"temperature = {temperature}: expected more than 0")
        self.n_classes, self.learnable = n_classes, learnable
        # Prototypes that are outputs make the loss of each row depend on other rows.
        self.by_row = learnable
        self.similarity, self.temperature = similarity, temperature

    def build(self, output: Tensor, n_classes: int) -> None:
        if self.learnable:
            # Not negative, as outputs of a ReLU.
            values = torch.rand(n_classes, output.shape[1], device=output.device)
            self.prototypes = nn.Parameter(values / output.shape[1] ** 0.5)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of samples and the prototypes, ``[m, d]`` and ``[C, d]``."""
        if self.learnable:
            return output, self.prototypes
        # The backward pass of two slices pads and adds gradients; that of a split concatenates them.
        rows, prototypes = output.split((len(output) - self.n_classes, self.n_classes))
        return rows, prototypes

    def scores(self, output: Tensor) -> Tensor:
        return self.similarities(*self.split(output))

    def similarities(self, rows: Tensor, prototypes: Tensor) -> Tensor:
        """Compute the logits ``[m, C]`` of rows ``[m, d]`` and prototypes ``[C, d]``."""
        if self.similarity == "cosine":
            rows, prototypes = F.normalize(rows, dim=1), F.normalize(prototypes, dim=1)
        return rows @ prototypes.T / self.temperature

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target, ignore_index=-1)


class TopToLoss(ClassPrototypes, StatefulFeedbackLoss):
    """`ClassPrototypes` on the mean of a block's output and the states of all blocks above it.

    ``m = (h + s_(l+1) + ... + s_L) / (L - l + 1)``, with s the length-normalized outputs of the previous
    step. The message of a block has its own state and those of all blocks above. In training all blocks are
    updated at the same time: the input of the block above is the state of the previous step, too.
    """

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.state is None:
            return message, message
        state = self.state.unsqueeze(0)
        return message, state if message is None else torch.cat([state, message])

    def next_state(self, output: Tensor) -> Tensor:
        return unit_rows(output)

    def passed_up(self, output: Tensor) -> Tensor:
        return output if self.state is None else self.state

    def combine(self, output: Tensor, feedback: Tensor | None) -> Tensor:
        return output if feedback is None else torch.cat([output.unsqueeze(0), feedback]).mean(0)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return super().forward(self.combine(output, feedback), target)


class TopToInput(ClassPrototypes, StatefulFeedbackLoss):
    """`ClassPrototypes` of a block whose input is concatenated with the state of the block above it.

    The state is the output of the previous step. The top block receives the labels.
    """

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, self.state

    def next_state(self, output: Tensor) -> Tensor:
        return output


@register_loss("prototype_goodness")
class PrototypeGoodness(ClassPrototypes):
    """Goodness as the cosine to a learned prototype of each class (Hyperspherical Forward-Forward).

    Sarode et al., arXiv 2605.00082: prototypes and outputs ``h [rows, ...]`` are normalized to unit length,
    and the prototypes of the other classes replace negative samples::

        g_ik = <h_i, c_k> / (|h_i| |c_k|)
        loss = CE(softmax(g_i / temperature), y_i)

    One forward pass computes the goodness of all classes, in training and evaluation.

    Args:
        temperature: Divisor of the cosine.
        pool: Side of the map that maps are pooled to; 1 is global; None: no pooling.
        pooling: Pooling by the average or by the root of the mean square (``"rms"``).
        features: Largest number of features without ``pool``, see
            `bpfree.losses.cross_entropy.flat_features`; None: any number.
    """

    def __init__(
        self,
        temperature: Annotated[float, Gt(0)] = 0.1,
        pool: Annotated[int, Ge(1)] | None = None,
        pooling: Pooling = "average",
        features: Annotated[int, Ge(1)] | None = FEATURES,
    ) -> None:
        # `build` sets the number of classes.
        super().__init__(0, learnable=True, similarity="cosine", temperature=temperature)
        self.pool, self.pooling, self.limit = pool, pooling, features

    def planned_parameters(self, output: Tensor, n_classes: int) -> int:
        features: Tensor = self._features(output)(output)
        return features.shape[1] * n_classes

    def _features(self, output: Tensor) -> nn.Sequential:
        return flat_features(output, self.pool, self.pooling, self.limit, self.feature_axis)

    def build(self, output: Tensor, n_classes: int) -> None:
        self.features = self._features(output)
        super().build(self.features(output), n_classes)

    def scores(self, output: Tensor) -> Tensor:
        # Cosines are divided by a small number, so the 8 bits of bfloat16 are not enough.
        with torch.autocast(output.device.type, enabled=False):
            return self.similarities(self.features(at_least_float32(output)), self.prototypes)
