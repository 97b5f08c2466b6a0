"""`Point`, a place where a model is cut, and `Inputs`, the arguments that a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from bpfree.cuts.tree import Tree, map_tensors, tensors


class Point(NamedTuple):
    """The output of a module call, or of an operation inside it. Blocks end here.

    The name is the same in training and in evaluation mode, and for all input shapes.

    Attributes:
        path: Name of the module in `torch.nn.Module.named_modules`; empty for the model itself.
        call: Number of the call of this module in one forward pass, from 0.
        operation: None: the point is the output of the module. Otherwise the name of a function called by the
            forward method of the module itself, and its number among the calls of this function there, such
            as ``"relu:0"``.
        leaf: Index of the tensor among the `tensors` of the output.
    """

    path: str
    call: int = 0
    operation: str | None = None
    leaf: int = 0

    def __str__(self) -> str:
        call = f" (call {self.call + 1})" if self.call else ""
        return f"{self.path or 'the model'}{call}" + (f", {self.operation}" if self.operation else "")


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call of a model.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Tree, ...] = ()
    kwargs: Mapping[str, Tree] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Tree) -> Inputs:
        """Return the arguments that ``value`` stands for.

        A mapping stands for keyword arguments, a tuple or list for positional ones, `Inputs` for itself, and
        any other value is the only argument.
        """
        if isinstance(value, Inputs):
            return value
        if isinstance(value, Mapping):
            return cls((), dict(value))
        if isinstance(value, tuple | list):
            return cls(tuple(value))
        return cls((value,))

    def call(self, model: nn.Module) -> Tree:
        """Call the model."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return list(tensors((self.args, dict(self.kwargs))))

    def map(self, function: object) -> Inputs:
        """Return arguments in which each tensor is replaced by its image."""
        assert callable(function)
        args, kwargs = (map_tensors(function, part) for part in (self.args, dict(self.kwargs)))
        assert isinstance(args, tuple)
        assert isinstance(kwargs, Mapping)
        return Inputs(args, kwargs)


def model_output(output: Tree) -> Tensor:
    """Return the tensor of class scores in the output of a model.

    It is the output itself, the entry or attribute ``logits``, or the first tensor with a gradient (without
    one, the first of floating point).

    Raises:
        TypeError: If there is no tensor of floating point.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    floats = [t for t in tensors(output) if t.is_floating_point()]
    if not floats:
        raise TypeError(f"the model returned {type(output).__name__} without a tensor of floating point")
    return next((t for t in floats if t.requires_grad), floats[0])
