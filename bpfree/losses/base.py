"""`LocalLoss`, the objective of one block, and classes of losses that need more than its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import refuse_old_members
from bpfree.nn import at_least_float32

#: Methods of version 0.1, and their replacements.
REPLACED = {
    "teach": "make_feedback(message) of a bpfree.losses.FeedbackLoss",
    "remembered": "next_state(output) of a bpfree.losses.StatefulFeedbackLoss",
    "upward": "passed_up(output) of a bpfree.losses.StatefulFeedbackLoss",
    "blend": "combine(output, feedback) of a bpfree.losses.StatefulFeedbackLoss",
    "output_gradient": "closed_form(output, target, feedback) of a bpfree.losses.ClosedFormLoss",
    "one_pass": "a bpfree.losses.OnePassLoss",
    "begin_pass": "begin() of a bpfree.losses.OnePassLoss",
    "end_pass": "solve(validation) of a bpfree.losses.OnePassLoss",
    "planned": "planned_parameters(output, n_classes) of a bpfree.losses.ScoringLoss",
}

#: The base class of the losses on which a method is called.
BASES = {
    "make_feedback": "FeedbackLoss",
    "next_state": "StatefulFeedbackLoss",
    "closed_form": "ClosedFormLoss",
    "accumulate": "OnePassLoss",
    "block_loss": "BlockLoss",
    "planned_parameters": "ScoringLoss",
    "probabilities": "ScoringLoss",
}


class LocalLoss(nn.Module, ABC):
    """The objective of one block, with the head that belongs to it.

    A loss is computed from the block's output, the target, and the feedback from the block above. It does
    not depend on batches, devices, epochs or other blocks. Subclasses implement `forward`; `build` and
    `scores` have defaults for a loss without a head and without class scores.

    Attributes:
        signed: Whether it is trained on positive and negative samples, with targets 1 and 0. Its scores are
            then a goodness ``[rows, 1]``.
        by_row: Whether the value for a batch is the mean of the values for its rows (for its samples, where a
            sample has several rows), and parameters and buffers change only by its gradient. Replicas can
            then split a batch.
        feature_axis: The axis of the features in an output ``[rows, ...]``, 1 or -1. The block sets it before
            `build`. The other axes are positions.
    """

    signed: ClassVar[bool] = False
    by_row: bool = False
    feature_axis: int = 1

    def __init_subclass__(cls, **options: object) -> None:
        """Refuse methods that would never be called.

        Raises:
            BadValue: If the class defines a method of version 0.1 that no longer exists, or a method that is
                only called on subclasses of another base class.
        """
        super().__init_subclass__(**options)
        refuse_old_members(cls, REPLACED)
        ancestors = {ancestor.__name__ for ancestor in cls.__mro__}
        for name, base in BASES.items():
            if name in cls.__dict__ and base not in ancestors:
                raise BadValue(
                    f"{cls.__name__}.{name} is only called on subclasses of bpfree.losses.{base}: add it to "
                    f"the bases of {cls.__name__}"
                )

    def build(self, output: Tensor, n_classes: int) -> None:
        """Create parameters and buffers that depend on the shape of the output (a head, a threshold).

        Called once, before the optimizers are created.

        Args:
            output: The block's output for a few rows, ``[rows, ...]``.
            n_classes: Number of classes C.
        """

    @abstractmethod
    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            output: The block's output, ``[rows, ...]``, with its autograd graph.
            target: The target of each row, ``[rows]``: a class, or 1/0 for positive/negative.
            feedback: The feedback of the block, see `FeedbackLoss`; None for other losses.
        """

    def scores(self, output: Tensor) -> Tensor | None:
        """Compute scores of each row, for readouts.

        Returns:
            Class scores ``[rows, C]``, a goodness ``[rows, 1]``, or None if the loss has no scores.
        """
        return None


class ScoringLoss(LocalLoss):
    """A loss with class scores, from a head or with other probabilities than the softmax."""

    def planned_parameters(self, output: Tensor, n_classes: int) -> int:
        """Return the number of trainable values that `build` will create.

        Args:
            output: As for `build`.
            n_classes: As for `build`.
        """
        return 0

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probabilities ``[rows, C]`` of class scores ``[rows, C]``; by default the softmax."""
        return at_least_float32(scores).softmax(1)


class FeedbackLoss(LocalLoss):
    """A loss that receives a message from the block above and sends one to the block below."""

    @abstractmethod
    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Compute the feedback from a message. Called once per step, before the block is updated.

        Args:
            message: The message from the block above, detached; None for the top block, unless the encoding
                sends one.

        Returns:
            The feedback of the block, which is passed to `forward` with its autograd graph, and the message
            for the block below, which is detached at the block boundary.
        """

    def feedback_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that compute the feedback. They can have a separate learning rate."""
        return ()


class StatefulFeedbackLoss(FeedbackLoss):
    """A loss whose messages are computed from the block's output in the previous step.

    Attributes:
        state: `next_state` of the previous step's output, or None. It is saved in the checkpoint of a run,
            not in the model's ``state_dict``.
    """

    state: Tensor | None = None

    @abstractmethod
    def next_state(self, output: Tensor) -> Tensor:
        """Return the state after a step with this output (detached), ``[rows, ...]``."""

    def passed_up(self, output: Tensor) -> Tensor:
        """Return the input of the block above in a training step. Called before `state` changes."""
        return output

    def combine(self, output: Tensor, feedback: Tensor | None) -> Tensor:
        """Return the output that readouts receive; by default the output without the feedback."""
        return output


class ClosedFormStep(NamedTuple):
    """A loss and its gradients, computed without autograd.

    Attributes:
        loss: The loss, a scalar.
        error: Its gradient with respect to the block's output, ``[rows, ...]``. It may be overwritten.
        gradients: Its gradients with respect to the loss's own parameters.
    """

    loss: Tensor
    error: Tensor
    gradients: dict[Tensor, Tensor]


class ClosedFormLoss(LocalLoss):
    """A loss whose gradients have a closed form."""

    @abstractmethod
    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        """Compute the loss and its gradients, without autograd.

        Args:
            output: As for `forward`.
            target: As for `forward`.
            feedback: As for `forward`.

        Raises:
            TypeError: If there is no closed form with these options.
        """

    def check_closed_form(self) -> None:
        """Check that there is a closed form. Called before the first step.

        Raises:
            TypeError: If there is no closed form with these options, or with this head.
        """


class OnePassLoss(LocalLoss):
    """A loss that is minimized exactly after one pass over the training data.

    The body of its block has no trainable parameters.
    """

    def begin(self) -> None:
        """Delete the sums of an earlier pass. Called before a pass."""

    @abstractmethod
    def accumulate(self, output: Tensor, target: Tensor) -> None:
        """Add the rows of a batch to the sums."""

    @abstractmethod
    def solve(self, validation: Iterable[tuple[Tensor, Tensor]] | None) -> None:
        """Set the parameters to the minimum. Called after a pass.

        Args:
            validation: Outputs of the block and targets ``[rows]`` on validation data, in batches, computed
                when they are iterated over; None if there are no validation data.
        """


class BlockLoss(LocalLoss):
    """A loss that is computed from the block's input and body as well as its output, as in predictive coding.

    Subclasses implement `block_loss`. A rule that is not the gradient of a loss, such as Oja's, is a subclass
    of `bpfree.core.update_rules.UpdateRule`.
    """

    @abstractmethod
    def block_loss(
        self, body: nn.Module, inputs: Tensor, output: Tensor, target: Tensor, feedback: Tensor | None
    ) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            body: The block's body.
            inputs: The input of the body, ``[rows, ...]``, detached.
            output: ``body(inputs)``, ``[rows, ...]``, with its autograd graph.
            target: As for `forward`.
            feedback: As for `forward`.
        """

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        """Not defined.

        Raises:
            TypeError: Always, since the input is needed.
        """
        raise TypeError(f"{type(self).__name__} needs the block's input: call block_loss")
