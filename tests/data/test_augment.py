import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.data import _augment as A


def images(n: int = 20, channels: int = 3, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.randint(
        256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_mirrors_only_the_selected_samples(dtype):
    x = images().to(dtype)
    flipped = A.draw_flips(len(x), generator())
    expected = [
        image[:, :, ::-1] if f else image for image, f in zip(x.numpy(), flipped.tolist(), strict=True)
    ]
    assert 0 < flipped.sum() < len(x)
    np.testing.assert_array_equal(A.flip(x, flipped).numpy(), np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("apply", "reach", "mode"), [(A.crop, A.CROP_PIXELS, "reflect"), (A.shift, A.SHIFT_PIXELS, "constant")]
)
def test_crop_and_shift_equal_padding_and_slicing_each_sample(apply, reach, mode, dtype):
    x = images(n=200).to(dtype)
    offsets = A.draw_offsets(len(x), reach, generator())
    assert offsets.min() == -reach and offsets.max() == reach
    expected = []
    for image, (down, right) in zip(x.numpy(), offsets.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode=mode)
        top, left = reach + down, reach + right
        expected.append(padded[:, top : top + 9, left : left + 7])
    result = apply(x, offsets)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_zero_offsets_and_no_flips_change_nothing():
    x = images()
    zero = torch.zeros(len(x), 2, dtype=torch.int64)
    assert torch.equal(A.crop(x, zero), x)
    assert torch.equal(A.shift(x, zero), x)
    assert torch.equal(A.flip(x, torch.zeros(len(x), dtype=torch.bool)), x)


def test_draws_are_uniform():
    offsets = A.draw_offsets(20_000, 2, generator())
    for value in range(-2, 3):
        assert ((offsets == value).double().mean(0) - 0.2).abs().max() < 0.02
    assert abs(A.draw_flips(20_000, generator()).double().mean() - 0.5) < 0.02


@pytest.mark.parametrize("name", A.AUGMENTATIONS)
def test_augmentations_depend_only_on_the_generator(name):
    x = images()
    torch.manual_seed(0)
    first = A.augment(x, [name], generator(3))
    torch.manual_seed(1)
    assert torch.equal(A.augment(x, [name], generator(3)), first)
    assert not torch.equal(A.augment(x, [name], generator(4)), first)
    assert torch.equal(x, images())


def test_names_are_applied_in_order():
    x, g = images(), generator(5)
    flipped = A.flip(x, A.draw_flips(len(x), g))
    expected = A.crop(flipped, A.draw_offsets(len(x), A.CROP_PIXELS, g))
    assert torch.equal(A.augment(x, ("flip", "crop"), generator(5)), expected)


def test_an_unknown_name_raises_an_error_that_lists_the_names():
    with pytest.raises(BadValue, match=r"'rotate'.*flip, crop, shift"):
        A.check_names(("flip", "rotate"))


def test_a_single_name_can_be_a_string():
    assert A.check_names("flip") == ("flip",)


def test_crop_of_too_small_images_raises_an_error():
    with pytest.raises(BadValue, match=r"4x9.*at least 5"):
        A.crop(images(height=4, width=9), torch.zeros(20, 2, dtype=torch.int64))


def test_a_generator_on_another_device_raises_an_error():
    with pytest.raises(BadValue, match=r"generator is on cpu and the images are on meta"):
        A.augment(images().to("meta"), ("flip",), generator())
