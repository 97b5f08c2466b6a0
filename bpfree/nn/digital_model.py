"""Physical fronts with a digital model of the device, for trainers that need its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from bpfree._errors import BadValue
from bpfree.nn.device_passes import CountedModule
from bpfree.nn.physical import PhysicalFront

#: What computes the outputs in training mode. In evaluation mode it is always the device.
Forward = Literal["device", "digital_model"]


class DigitalModelFront(CountedModule):
    """A `PhysicalFront` through which a digital model of the device provides the gradient.

    In evaluation mode the device computes the outputs. In training mode, with ``forward="device"``, the
    device computes the outputs and the backward pass is the vector-Jacobian product of the digital model at
    the drives that the device received: physics-aware training (Wright et al., Nature 601, 549, 2022). With
    an exact model this is backpropagation through the device. With ``forward="digital_model"``, the model
    computes the outputs as well: training in silico.

    Args:
        front: The front, with its device.
        digital_model: A differentiable module, drives ``[B, n_in]`` to outputs ``[B, n_out]``. None only for
            a front without a device.
        forward: What computes the outputs in training mode.

    Raises:
        BadValue: If the front has a device and ``digital_model`` is None.
    """

    def __init__(
        self, front: PhysicalFront, digital_model: nn.Module | None, forward: Forward = "device"
    ) -> None:
        super().__init__()
        if front.physical_device is not None and digital_model is None:
            raise BadValue("the device has no digital model; only simulated systems have one")
        self.front, self.computed_by = front, forward
        # In a tuple, so that nn.Module does not register it: the model is not part of the network's state.
        self._digital_model = (digital_model,)

    @property
    def digital_model(self) -> nn.Module | None:
        """The digital model of the device; None without a device."""
        return self._digital_model[0]

    def forward(self, rows: Tensor) -> Tensor:
        if self.digital_model is None or not self.training or self.front.infer_shapes:
            features: Tensor = self.front(rows)
            return features
        drives = self.front.drive(rows)
        if self.computed_by == "digital_model":
            outputs = self._model_outputs(drives)
        else:
            outputs = _DeviceForward.apply(drives, self.front, self._model_outputs)
        return self.front.features(outputs, rows)

    def _model_outputs(self, drives: Tensor) -> Tensor:
        assert self.digital_model is not None and self.front.physical_device is not None
        low, high = self.front.physical_device.input_range
        outputs: Tensor = self.digital_model(drives.clamp(low, high)).to(drives.dtype)
        return outputs


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    model: Callable[[Tensor], Tensor]


class _DeviceForward(torch.autograd.Function):
    """Forward: outputs of the device. Backward: vector-Jacobian product of the digital model."""

    @staticmethod
    def forward(
        ctx: _Context, drives: Tensor, front: PhysicalFront, model: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(drives)
        ctx.model = model
        return front.measure(drives.detach())

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (drives,) = ctx.saved_tensors
        with torch.enable_grad():
            drives = drives.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.model(drives), drives, grad_outputs[0])
        return gradient, None, None
