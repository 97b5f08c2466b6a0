"""Drives of physical devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bpfree import BadValue
from bpfree.nn.drives import DRIVES, Drive, MinMax, Picture, TwoBit, UnitNorm

ROWS = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])


def test_rows_are_padded_with_zeros_and_never_cropped() -> None:
    assert torch.equal(Drive(5, (0.0, 1.0))(ROWS)[0], torch.tensor([3.0, -4.0, 0.0, 0.0, 0.0]))
    for name, kind in DRIVES.items():
        with pytest.raises(BadValue, match="fit"):
            kind(4 if name == "picture" else 2, (0.0, 1.0))(torch.ones(1, 9))


def test_unit_norm_loses_sign_and_scale() -> None:
    drive = UnitNorm(4, (0.0, 1.0))
    torch.testing.assert_close(drive(ROWS)[0], torch.tensor([0.6, 0.8, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(drive(-7 * ROWS)[2], drive(ROWS)[2])
    assert torch.equal(drive(ROWS)[1], torch.zeros(4))


def test_minmax_covers_the_input_range() -> None:
    result = MinMax(3, (-2.0, 2.0))(ROWS)
    torch.testing.assert_close(result[0], torch.tensor([2.0, -2.0, 2.0 * (4 / 7 * 2 - 1)]))
    assert result.isfinite().all()


def test_two_bit_thresholds_are_the_published_ones() -> None:
    row = torch.tensor([[0.0, 0.2, 0.25, 0.26, 0.75, 0.76, 1.0]])
    result = TwoBit(16, (0.0, 1.0))(row)[0]
    bits = [(int(a), int(b)) for a, b in result[:14].view(7, 2).tolist()]
    assert bits == [(0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1)]
    assert torch.equal(result[14:], torch.zeros(2))


def test_two_bit_gradient_is_that_of_the_scaled_value() -> None:
    row = torch.tensor([[0.0, 0.3, 0.8, 1.0]], requires_grad=True)
    weights = torch.arange(8.0)
    hard = TwoBit(8, (0.0, 1.0))(row)
    (result,) = torch.autograd.grad((hard * weights).sum(), row)
    smooth = MinMax(4, (0.0, 1.0))(row).repeat_interleave(2, 1)
    (expected,) = torch.autograd.grad((smooth * weights).sum(), row)
    torch.testing.assert_close(result, expected)
    assert torch.equal(hard.detach(), TwoBit(8, (0.0, 1.0))(row.detach()))


def slots_and_image(label: int) -> Tensor:
    return torch.cat(
        [torch.nn.functional.one_hot(torch.tensor([label]), 3).float(), torch.full((1, 16), 0.5)], 1
    )


def test_a_picture_shows_a_label_as_lines_around_the_image() -> None:
    picture = Picture(100, (0.0, 1.0), (3, 4, 4))(slots_and_image(1)).view(10, 10)
    # 3 lines, 4 rows of pixels, 3 lines; two copies of 4 columns side by side, centered in ten columns.
    expected = torch.zeros(10, 10)
    expected[3:7, 1:9] = 0.5
    expected[1, 1:9] = expected[8, 1:9] = 1.0
    assert torch.equal(picture, expected)


def test_label_lines_are_only_above_the_image_without_room_below() -> None:
    picture = Picture(64, (0.0, 1.0), (3, 4, 4))(slots_and_image(0)).view(8, 8)
    assert torch.equal(picture[0], torch.ones(8))
    assert torch.equal(picture[3:7], torch.full((4, 8), 0.5))
    assert picture[1:3].sum() == 0 and picture[7].sum() == 0
    with pytest.raises(BadValue, match="label lines"):
        Picture(36, (0.0, 1.0), (3, 4, 4))


def test_other_rows_become_an_enlarged_square_with_sign_for_a_signed_device() -> None:
    row = torch.tensor([[2.0, -4.0, 1.0]])
    signed = Picture(25, (-1.0, 1.0))(row).view(5, 5)
    block = torch.tensor([[0.5, -1.0], [0.25, 0.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(signed[:4, :4], block)
    assert signed[4].sum() == 0 and signed[:, 4].sum() == 0
    assert torch.equal(Picture(25, (0.0, 1.0))(row), signed.abs().flatten().unsqueeze(0))
    with pytest.raises(BadValue, match="square"):
        Picture(24, (0.0, 1.0))
