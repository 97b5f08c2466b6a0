"""Blocks, update rules, cascades and readouts."""

from bpfree.core.block import BaseBlock, Block, send_feedback
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.localize import localize, split
from bpfree.core.stacked import Stacked
from bpfree.core.update_rules import (
    Autograd,
    ClosedFormGradient,
    Gradients,
    Objective,
    OnePassSolve,
    Perturbation,
    UpdateRule,
)

__all__ = [
    "Autograd",
    "BaseBlock",
    "Block",
    "Cascade",
    "ClosedFormGradient",
    "Gradients",
    "JointBlock",
    "Objective",
    "OnePassSolve",
    "Perturbation",
    "Stacked",
    "UpdateRule",
    "localize",
    "send_feedback",
    "split",
]
