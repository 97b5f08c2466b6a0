"""Devices with a differentiable twin at their side: for trainers that need a model of the device."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.nn.counted import Counted, Purpose
from bpfree.nn.physical import PhysicalFront

#: Who answers while the network trains; when it is used, the device does.
Forward = Literal["device", "twin"]


class TwinFront(Counted):
    """A front that trains with the help of a twin, and is used with the device alone.

    ``device``: the device answers, and the gradient is the twin's vector-Jacobian product at the measured
    input of the layer (physics-aware training, Wright et al., Nature 601, 549); with an exact twin that is
    backpropagation through the device. ``twin``: the twin answers, as in training in simulation.

    Args:
        front: The front, device included.
        twin: A differentiable model of the device, drives ``[B, n_in]`` to answers ``[B, n_out]``.
        forward: Who answers in training mode.
    """

    def __init__(self, front: PhysicalFront, twin: nn.Module | None, forward: Forward = "device") -> None:
        super().__init__()
        if front.device is not None and twin is None:
            raise BadValue("a device without a twin: only simulated systems have one")
        self.front, self.answers = front, forward
        # In a tuple, which nn.Module does not look into: a model of the device is no part of the network's
        # state.
        self._twin = (twin,)

    @property
    def twin(self) -> nn.Module | None:
        """The model of the device; None where there is no device."""
        return self._twin[0]

    def forward(self, rows: Tensor) -> Tensor:
        if self.twin is None or not self.training or self.front.purpose == "shape":
            return self.front(rows)  # type: ignore[no-any-return]
        drives = self.front.drive(rows)
        if self.answers == "twin":
            return self.front.joined(self._by_twin(drives), rows)
        answers = _Measured.apply(drives, self.front, self._by_twin)
        return self.front.joined(answers, rows)

    def _by_twin(self, drives: Tensor) -> Tensor:
        assert self.twin is not None
        low, high = self.front.device.input_range  # type: ignore[union-attr]
        answers: Tensor = self.twin(drives.clamp(low, high)).to(drives.dtype)
        return answers


class _Measured(torch.autograd.Function):
    """The device's answer forwards, the twin's vector-Jacobian product backwards."""

    @staticmethod
    def forward(ctx: Any, drives: Tensor, front: PhysicalFront, twin: Any) -> Tensor:
        ctx.save_for_backward(drives)
        ctx.twin = twin
        return front.measured(drives.detach())

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None]:
        (drives,) = ctx.saved_tensors
        with torch.enable_grad():
            drives = drives.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.twin(drives), drives, error)
        return gradient, None, None


__all__ = ["Forward", "Purpose", "TwinFront"]
