"""Whether every loss that needs a message from the block above gets one."""

from __future__ import annotations

import copy
import warnings

import torch

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock
from bpfree.core.cascade import Cascade
from bpfree.losses import FeedbackLoss, StatefulFeedbackLoss


def warn_without_feedback(cascade: Cascade) -> None:
    """Warn of blocks with a `FeedbackLoss` below a block that sends no message.

    Raises:
        BadValue: If such a loss fails without a message.
    """
    if text := without_feedback(cascade):
        warnings.warn(text, stacklevel=2)


def without_feedback(cascade: Cascade) -> str:
    """What to warn of: blocks below the highest that get no message; empty if all get one.

    Copies of the losses are called, so that nothing changes. A `StatefulFeedbackLoss` has no message to send
    in the first step, and is left out.

    Raises:
        BadValue: If a loss fails without a message.
    """
    blocks = cascade.units
    if not any(_needs_message(block) for block in blocks[:-1]):
        return ""
    device = next((p.device for p in cascade.parameters()), torch.device("cpu"))
    try:
        losses = [copy.deepcopy(block.loss) for block in blocks]
    except RuntimeError:  # it holds on to a graph, and cannot be copied
        return ""
    message, lacking = cascade.encoding.message(), list[int]()
    with _seeds.fork_global(device), torch.no_grad():
        for k in range(len(blocks) - 1, -1, -1):
            if k + 1 < len(blocks) and message is None and _needs_message(blocks[k]):
                lacking.append(k)
            loss = losses[k]
            try:
                message = loss.make_feedback(message)[1] if isinstance(loss, FeedbackLoss) else None
            except (AssertionError, AttributeError, TypeError) as error:
                if k not in lacking:
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise BadValue(f"{_lacks(blocks, k)}, and fails without one ({reason}): {REMEDY}") from None
    return "; ".join(_lacks(blocks, k) for k in lacking[::-1]) + f": {REMEDY}" if lacking else ""


REMEDY = (
    "let the loss of the block above send one, or give every block the same loss (output = 'none'), whose "
    "`make_feedback` must then return one at the top, where it is given None"
)


def _needs_message(block: BaseBlock) -> bool:
    return isinstance(block.loss, FeedbackLoss) and not isinstance(block.loss, StatefulFeedbackLoss)


def _lacks(blocks: list[BaseBlock], k: int) -> str:
    own, above = (type(block.loss).__name__ for block in blocks[k : k + 2])
    return f"block {k + 1} ({own}) gets no message from block {k + 2} ({above}) above it"
