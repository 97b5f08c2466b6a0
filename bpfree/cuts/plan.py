"""`CutPlan`: where a model is cut, and which parameters belong to each segment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bpfree.cuts.points import Inputs, Point


@dataclass(frozen=True)
class CutPlan:
    """Where a model is cut into segments, bottom first. The highest segment is the output layer.

    Attributes:
        model: The model. It is not changed.
        points: The ends of all segments but the highest. At least one.
        parameters: For each segment, the names of the parameters that its loss is the first to reach.
        modules: For each segment, the paths of the modules whose first call begins and ends in it.
        batch_axes: For each point, the axis of the samples in the tensor.
        unreached: Names of the parameters that no loss reaches.
        shared: Names of the parameters that segments above the first one use as well, with the numbers of
            these segments, from 0.
        saved_bytes: For each segment, the bytes that autograd saves for a backward pass, without parameters.
        saved_bytes_whole: The same for a backward pass through the model.
        costs: For each segment, floating point operations of its forward pass.
        inputs: The example.
    """

    model: nn.Module
    points: tuple[Point, ...]
    parameters: tuple[tuple[str, ...], ...]
    modules: tuple[tuple[str, ...], ...]
    batch_axes: tuple[int, ...]
    unreached: tuple[str, ...]
    shared: dict[str, tuple[int, ...]]
    saved_bytes: tuple[int, ...]
    saved_bytes_whole: int
    costs: tuple[float, ...]
    inputs: Inputs
