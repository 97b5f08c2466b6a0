"""`LocalLoss`: what one block is trained for, seen from inside the block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from bpfree.nn import widened


class LocalLoss(nn.Module, ABC):
    """The objective of one block, with whatever head or teacher side belongs to it.

    A loss sees the block's output, the target that is broadcast to every block, and the message that came
    down from the block above; it knows nothing of batches, devices, epochs or of other blocks. Subclasses
    write `forward`; the other methods have defaults that suit a loss without head, scores or messages.

    Attributes:
        one_pass: Whether the loss gathers what it sees in one pass over the data and solves at its end, so
            that another pass would change nothing. Its block must have nothing to learn in its body.
        signed: Whether it learns from rows that show a right or a wrong label, and its targets are 1 and 0;
            its scores are then a goodness ``[rows, 1]``.
        by_row: Whether the value for some rows is the mean of its values for each of them alone (for each
            sample alone, where a sample is shown in several rows), and nothing is learned but by its
            gradient. Then workers may share the rows of a batch out.
        feature_axis: Which axis of an output ``[rows, ...]`` holds its features, 1 or -1; its block says so
            before `build`. An axis in between is a position.
        memory: What `remembered` made of the output of the last step, for the next one's messages; it is part
            of a run's checkpoint and not of the model.
    """

    one_pass: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    by_row: bool = False
    feature_axis: int = 1
    memory: Tensor | None = None

    def build(self, output: Tensor, n_classes: int) -> None:
        """Create what depends on the shape of the block's output (a head, a threshold).

        Called once, before any optimizer is made.

        Args:
            output: The block's output for a few rows, ``[rows, ...]``.
            n_classes: Number of classes C.
        """

    def planned(self, output: Tensor, n_classes: int) -> int:
        """How many trainable values `build` will create; none here.

        Args:
            output: As for `build`.
            n_classes: As for `build`.
        """
        return 0

    @abstractmethod
    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        """The scalar loss.

        Args:
            output: The block's output, ``[rows, ...]``, with its graph.
            target: What the encoding says of each row, ``[rows]``: a class, or 1/0 for positive/negative.
            lesson: What `teach` made of the message from above, or None.
        """

    def scores(self, output: Tensor) -> Tensor | None:
        """What the block says of each row, for the readout.

        Returns:
            Class scores ``[rows, C]``, a goodness ``[rows, 1]``, or None if the loss has nothing to say.
        """
        return None

    def probabilities(self, scores: Tensor) -> Tensor:
        """What class scores ``[rows, C]`` mean as probabilities, ``[rows, C]``; by default their softmax."""
        return widened(scores).softmax(1)

    def teach(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Receive the message from above, once per step and before the block is updated.

        Args:
            message: What the block above sends; None for the top block.

        Returns:
            The lesson that `forward` is given, graph included, and the message for the block below, which
            is detached at the wall.
        """
        return None, None

    def remembered(self, output: Tensor) -> Tensor | None:
        """What is kept in ``memory`` of the block's output, detached, after a step: nothing here."""
        return None

    def upward(self, output: Tensor) -> Tensor:
        """What the block above is shown in a training step: the output, or something older."""
        return output

    def blend(self, output: Tensor, lesson: Tensor | None) -> Tensor:
        """What readouts see of the output, where blocks above have sent a lesson: the output."""
        return output

    def feedback_parameters(self) -> Iterable[nn.Parameter]:
        """Those of the loss's parameters that make messages: they may have a learning rate of their own."""
        return ()

    def output_gradient(
        self, output: Tensor, target: Tensor, lesson: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss and its gradient by the block's output in closed form, without autograd.

        Also leaves the gradients of the loss's own parameters in their ``.grad``, or gathers what `end_pass`
        needs. The gradient may be None if the loss has none for the body.

        Raises:
            TypeError: If this loss has no closed form.
        """
        raise TypeError(f"{type(self).__name__} has no closed-form gradient: use gradients='autograd'")

    def begin_pass(self) -> None:
        """A pass over the training data begins."""

    def end_pass(self, validation: Iterable[tuple[Tensor, Tensor]] | None) -> None:
        """A pass over the training data has ended.

        Args:
            validation: Outputs of the block and targets ``[rows]`` on validation data, in batches, made when
                they are asked for; None if there are no such data.
        """
