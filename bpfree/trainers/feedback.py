"""Whether every loss that takes messages from the block above is sent some."""

from __future__ import annotations

import copy
import warnings

import torch

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree.cascade import Block, Cascade
from bpfree.losses import LocalLoss


def warn_without_feedback(cascade: Cascade) -> None:
    """Warn of blocks whose loss overrides `LocalLoss.teach` while the block above sends it nothing.

    Raises:
        BadValue: If such a loss fails without a message.
    """
    if text := without_feedback(cascade):
        warnings.warn(text, stacklevel=2)


def without_feedback(cascade: Cascade) -> str:
    """What there is to say of blocks below the highest that are sent no message; nothing if all are sent one.

    Copies of the losses are asked, so that nothing changes. Those which send what they remember of the step
    before have nothing to send at first, and are left out.

    Raises:
        BadValue: If a loss fails without a message.
    """
    blocks = cascade.units
    if not any(_takes_messages(block) for block in blocks[:-1]):
        return ""
    device = next((p.device for p in cascade.parameters()), torch.device("cpu"))
    try:
        losses = [copy.deepcopy(block.loss) for block in blocks]
    except RuntimeError:  # it holds on to a graph, and cannot be copied
        return ""
    message, lacking = cascade.encoding.message(), list[int]()
    with _seeds.fork_global(device), torch.no_grad():
        for k in range(len(blocks) - 1, -1, -1):
            if k + 1 < len(blocks) and message is None and _takes_messages(blocks[k]):
                lacking.append(k)
            try:
                message = losses[k].teach(message)[1]
            except (AssertionError, AttributeError, TypeError) as error:
                if k not in lacking:
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise BadValue(f"{_lacks(blocks, k)}, and fails without one ({reason}): {REMEDY}") from None
    return "; ".join(_lacks(blocks, k) for k in lacking[::-1]) + f": {REMEDY}" if lacking else ""


REMEDY = (
    "let the loss of the block above send one, or give every block the same loss (output = 'none'), whose "
    "`teach` must then send one at the top, where it is given None"
)


def _takes_messages(block: Block) -> bool:
    kind = type(block.loss)
    return kind.teach is not LocalLoss.teach and kind.remembered is LocalLoss.remembered


def _lacks(blocks: list[Block], k: int) -> str:
    own, above = (type(block.loss).__name__ for block in blocks[k : k + 2])
    return f"block {k + 1} ({own}) is sent no message by block {k + 2} ({above}) above it"
