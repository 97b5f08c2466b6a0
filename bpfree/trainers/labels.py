"""Where labels are added to samples, by the training data, and warnings about data that do not suit this."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.core.cascade import Cascade
from bpfree.data import TensorData
from bpfree.data._augment import CROP_PIXELS
from bpfree.encodings.label_overlay import LabelColumns, LabeledLayer, LabelOverlay, add_label_inputs

#: Number of training samples that scales are estimated on, and number of samples in a batch of them.
SCALE_SAMPLES, SCALE_BATCH = 1000, 100
#: Name of the weights of labels beside the input, in the state dict of a cascade.
COLUMNS = "blocks.0.body.0.label.weight"
#: A label code over the input should be at least the largest value divided by the first, and at most the
#: length of a sample times the second. Otherwise the goodness of correct and wrong labels is almost equal.
SHORTEST, LONGEST = 1.5, 4.0


def place_as_saved(cascade: Cascade, tensors: Mapping[str, Tensor]) -> bool:
    """Add labels to samples in the same place as in the cascade with the state dict ``tensors``.

    Args:
        cascade: The cascade, built or not.
        tensors: The state dict.

    Returns:
        Whether parameters were added to the first block.

    Raises:
        BadValue: If the place was already set to another one.
    """
    encoding = cascade.encoding
    if not isinstance(encoding, LabelOverlay):
        return False
    beside, encoding.fitted, added = COLUMNS in tensors, True, False
    if encoding.beside is None:
        encoding.beside = beside
        added = beside and encoding.n_classes > 0
        if added:
            cascade.units[0].parts[0].body = add_label_inputs(
                cascade.units[0].parts[0].body, encoding.n_classes
            )
    if encoding.beside != beside:
        raise BadValue(
            f"the file contains a network with the label {'beside' if beside else 'over'} its input: load it "
            f"into a new trainer with overlay = {'beside' if beside else 'force'!r}, or 'auto'"
        )
    return added


def fit_labels(cascade: Cascade, train: TensorData) -> bool:
    """Set the place of labels and the scale of their codes by the first training data, and check the data.

    Args:
        cascade: The built cascade.
        train: The training data.

    Returns:
        Whether parameters were added to the first block.

    Warns:
        UserWarning: If the data do not suit the place or the scale.
    """
    encoding = cascade.encoding
    if not isinstance(encoding, LabelOverlay):
        return False
    rms, largest, problems = _scales(train)
    before = encoding.beside
    if encoding.beside is None:
        encoding.beside = first_values_vary(train, encoding.n_classes)
    if encoding.beside:
        cascade.units[0].parts[0].body = add_label_inputs(cascade.units[0].parts[0].body, encoding.n_classes)
        label = _columns(cascade)
        if not encoding.fitted and rms > 0:
            label.unit.fill_(rms * math.sqrt(label.fan_in))
        problems += _other_scale(rms * math.sqrt(label.fan_in) / label.unit.item())
    else:
        problems += _overwritten(encoding, train) + _unbalanced(encoding, rms, largest, train)
    encoding.fitted = True
    if problems:
        # The warning points to the user's call of fit.
        warnings.warn(f"{train.name}: " + "; ".join(problems), stacklevel=5)
    return encoding.beside and before is None


def first_values_vary(data: TensorData, n: int) -> bool:
    """Whether the first ``n`` values of a flattened sample differ between samples.

    With augmentation, these are the values of all rows of the image that can be shifted to them.
    """
    x = data.x
    if data.augment:
        height, width = x.shape[2:]
        rows = min(math.ceil(n / width), height) + CROP_PIXELS
        x = x[:, : math.ceil(n / (height * width)), :rows]
        constant = 0 if "shift" in data.augment else x[0, 0, 0, 0]
        return not bool((x == constant).all())
    while x.ndim > 2:
        # The slice comes first because flatten may copy.
        x = x[:, : math.ceil(n / x[0, 0].numel())].flatten(1, 2)
    return not bool((x[:, :n] == x[:1, :n]).all())


def _columns(cascade: Cascade) -> LabelColumns:
    body = cascade.units[0].parts[0].body
    assert isinstance(body, nn.Sequential)
    first = body[0]
    assert isinstance(first, LabeledLayer)
    return first.label


def _overwritten(encoding: LabelOverlay, train: TensorData) -> list[str]:
    if not first_values_vary(train, encoding.n_classes):
        return []
    why = "" if encoding.overlay == "force" else ", as earlier training data have set,"
    return [
        f"the label overwrites the first {encoding.n_classes} values of a sample{why} and these differ "
        "between samples: the network does not receive them; use overlay = 'beside'"
    ]


def _unbalanced(encoding: LabelOverlay, rms: float, largest: float, train: TensorData) -> list[str]:
    scale, length = encoding.scale, rms * math.sqrt(torch.Size(train.sample_shape).numel())
    if scale * SHORTEST >= largest and scale <= length * LONGEST:
        return []
    return [
        f"the label code is {scale:.3g} and the inputs have magnitudes up to {largest:.3g} and a root mean "
        f"square length of {length:.3g}: the goodness is almost equal for all labels; scale the inputs to "
        "[0, 1], set label_scale, or use overlay = 'beside'"
    ]


def _other_scale(ratio: float) -> list[str]:
    if ratio == 0:
        return ["the inputs are 0 everywhere"]
    if 1 / LONGEST <= ratio <= LONGEST:
        return []
    return [
        f"the inputs are {ratio:.3g} times as long as those that set the scale of the label code: use the "
        "same scale, or create a new trainer"
    ]


def _scales(data: TensorData) -> tuple[float, float, list[str]]:
    """Root mean square and largest magnitude of the inputs, and problems of single input features."""
    n, largest = 0, 0.0
    columns = torch.zeros(2, torch.Size(data.sample_shape).numel(), dtype=torch.float64)
    samples = torch.arange(0, len(data), math.ceil(len(data) / SCALE_SAMPLES), device=data.y.device)
    for indices in samples.split(SCALE_BATCH):
        # float32 would lose a small variance around a large mean. Some devices have no float64.
        x = data.batch(indices)[0].flatten(1).cpu().double()
        columns += torch.stack([x.sum(0), x.square().sum(0)])
        largest, n = max(largest, x.abs().max().item()), n + len(x)
    mean, square = columns / n
    return square.mean().sqrt().item(), largest, _hidden(mean, square)


def _hidden(mean: Tensor, square: Tensor) -> list[str]:
    """Problems of input features that a normalization of each sample's length makes almost constant.

    Args:
        mean: Mean of each feature, ``[d]``.
        square: Mean square of each feature, ``[d]``.
    """
    variance = (square - mean.square()).clamp(min=0)
    length, total = square.sum().item(), variance.sum().item()
    # The variance of a constant feature is not 0 because of rounding.
    varying = int((variance > 1e-12 * square).sum())
    advice = "the first layer normalizes the length of samples, which leaves little of {}; standardize them"
    if varying and total < 0.01 * length:
        ratio = math.sqrt(total / length)
        return [f"the inputs vary by {ratio:.1%} around their means: {advice.format('that')}"]
    if varying > 2 and variance.max() > 0.99 * total:
        column = int(variance.argmax())
        return [
            f"input {column} has {variance[column].item() / total:.1%} of the variance of all {varying} that "
            f"vary: {advice.format('the others')}"
        ]
    return []
