"""Where labels are shown to the first block, by the training data; and data that this does not suit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.core.cascade import Cascade
from bpfree.data import TensorData
from bpfree.data._augment import CROP_PIXELS
from bpfree.encodings.label_overlay import LabelColumns, LabelledLayer, LabelOverlay, put_beside

#: Training samples that scales are estimated on, and of those that are looked at together.
SCALE_SAMPLES, SCALE_BATCH = 1000, 100
#: The weights of labels beside the input, in the state of a cascade.
COLUMNS = "blocks.0.body.0.label.weight"
#: A code over the input is to be no shorter than the largest value divided by this, and no longer than a
#: sample times the other; beyond them the goodness of right and wrong labels can hardly be told apart.
SHORTEST, LONGEST = 1.5, 4.0


def place_as_saved(cascade: Cascade, tensors: Mapping[str, Tensor]) -> bool:
    """Put labels where they are in the cascade whose state ``tensors`` are, built or not.

    Returns:
        Whether the first block has other parameters than before.

    Raises:
        BadValue: If it was decided otherwise for this cascade.
    """
    encoding = cascade.encoding
    if not isinstance(encoding, LabelOverlay):
        return False
    beside, encoding.seen, grown = COLUMNS in tensors, True, False
    if encoding.beside is None:
        encoding.beside = beside
        grown = beside and encoding.n_classes > 0
        if grown:
            cascade.units[0].parts[0].body = put_beside(cascade.units[0].parts[0].body, encoding.n_classes)
    if encoding.beside != beside:
        raise BadValue(
            f"the file holds a network with the label {'beside' if beside else 'over'} its input: load it "
            f"into a new trainer with overlay = {'beside' if beside else 'force'!r}, or 'auto'"
        )
    return grown


def fit_labels(cascade: Cascade, train: TensorData) -> bool:
    """Decide by the first training data where labels go, and the scale of codes; warn of what does not fit.

    Args:
        cascade: Built.
        train: The training data.

    Returns:
        Whether the first block has other parameters than before.
    """
    encoding = cascade.encoding
    if not isinstance(encoding, LabelOverlay):
        return False
    rms, largest, faults = _scales(train)
    before = encoding.beside
    if encoding.beside is None:
        encoding.beside = first_values_vary(train, encoding.n_classes)
    if encoding.beside:
        cascade.units[0].parts[0].body = put_beside(cascade.units[0].parts[0].body, encoding.n_classes)
        label = _columns(cascade)
        if not encoding.seen and rms > 0:
            label.unit.fill_(rms * math.sqrt(label.fan_in))
        faults += _unlike(rms * math.sqrt(label.fan_in) / label.unit.item())
    else:
        faults += _overwritten(encoding, train) + _unbalanced(encoding, rms, largest, train)
    encoding.seen = True
    if faults:
        # The user's call of fit.
        warnings.warn(f"{train.name}: " + "; ".join(faults), stacklevel=5)
    return encoding.beside and before is None


def first_values_vary(data: TensorData, n: int) -> bool:
    """Whether the first ``n`` values of a flattened sample differ between samples.

    Augmented images have values of their neighbors there, of all rows that can be moved so far.
    """
    x = data.x
    if data.augment:
        height, width = x.shape[2:]
        rows = min(math.ceil(n / width), height) + CROP_PIXELS
        x = x[:, : math.ceil(n / (height * width)), :rows]
        filled = 0 if "shift" in data.augment else x[0, 0, 0, 0]
        return not bool((x == filled).all())
    while x.ndim > 2:
        # Narrowed before it is flattened, which may copy.
        x = x[:, : math.ceil(n / x[0, 0].numel())].flatten(1, 2)
    return not bool((x[:, :n] == x[:1, :n]).all())


def _columns(cascade: Cascade) -> LabelColumns:
    first: LabelledLayer = cascade.units[0].parts[0].body[0]  # type: ignore[index]
    return first.label


def _overwritten(encoding: LabelOverlay, train: TensorData) -> list[str]:
    if not first_values_vary(train, encoding.n_classes):
        return []
    why = "" if encoding.overlay == "force" else ", as was decided before these data were seen,"
    return [
        f"the label overwrites the first {encoding.n_classes} values of a sample{why} and these differ "
        "between samples: the network does not see them; use overlay = 'beside'"
    ]


def _unbalanced(encoding: LabelOverlay, rms: float, largest: float, train: TensorData) -> list[str]:
    scale, length = encoding.scale, rms * math.sqrt(torch.Size(train.sample_shape).numel())
    if scale * SHORTEST >= largest and scale <= length * LONGEST:
        return []
    return [
        f"the label code is {scale:.3g} and the inputs have magnitudes up to {largest:.3g} and a root mean "
        f"square length of {length:.3g}: the goodness can hardly tell labels apart; scale the inputs to "
        "[0, 1], set label_scale, or use overlay = 'beside'"
    ]


def _unlike(ratio: float) -> list[str]:
    if ratio == 0:
        return ["the inputs are 0 everywhere"]
    if 1 / LONGEST <= ratio <= LONGEST:
        return []
    return [
        f"the inputs are {ratio:.3g} times as long as those that the scale of the label code was taken from: "
        "scale them alike, or make a new trainer"
    ]


def _scales(data: TensorData) -> tuple[float, float, list[str]]:
    """Root mean square and largest magnitude of inputs, and what is wrong with single columns of them."""
    n, largest = 0, 0.0
    columns = torch.zeros(2, torch.Size(data.sample_shape).numel(), dtype=torch.float64)
    spread = torch.arange(0, len(data), math.ceil(len(data) / SCALE_SAMPLES), device=data.y.device)
    for indices in spread.split(SCALE_BATCH):
        # In float32 a small variance around a large mean would be lost; not every device has float64.
        x = data.batch(indices)[0].flatten(1).cpu().double()
        columns += torch.stack([x.sum(0), x.square().sum(0)])
        largest, n = max(largest, x.abs().max().item()), n + len(x)
    mean, square = columns / n
    return square.mean().sqrt().item(), largest, _hidden(mean, square)


def _hidden(mean: Tensor, square: Tensor) -> list[str]:
    """What the normalization of a sample's length hides, by the mean and mean square of columns, ``[d]``."""
    variance = (square - mean.square()).clamp(min=0)
    length, total = square.sum().item(), variance.sum().item()
    # Of a constant column rounding leaves a little.
    varying = int((variance > 1e-12 * square).sum())
    advice = "the first layer normalizes the length of samples, which leaves little of {}; standardize them"
    if varying and total < 0.01 * length:
        share = math.sqrt(total / length)
        return [f"the inputs vary by {share:.1%} around their means: {advice.format('that')}"]
    if varying > 2 and variance.max() > 0.99 * total:
        column = int(variance.argmax())
        return [
            f"input {column} has {variance[column].item() / total:.1%} of the variance of all {varying} that "
            f"vary: {advice.format('the others')}"
        ]
    return []
