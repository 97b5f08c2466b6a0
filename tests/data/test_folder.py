import numpy as np
import pytest
import torch
from PIL import Image

from bpfree._errors import BadValue, DataNotFound
from bpfree.data import load


def paint(file, value, size=(6, 5), mode="RGB"):
    """Write an image of one colour; size is (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


@pytest.fixture
def folder(tmp_path):
    """cats are red, dogs are blue, and each image's green is its number."""
    for part, n in (("train", 300), ("test", 2)):
        for i in range(n):
            paint(tmp_path / "pets" / part / "cat" / f"{i:03}.png", (200, i % 256, 0))
            paint(tmp_path / "pets" / part / "dog" / f"{i:03}.bmp", (0, i % 256, 200))
    return tmp_path / "pets"


def test_images_are_decoded_to_uint8_with_their_labels(folder):
    train, validation, test = load("image_folder", root=folder.parent, path="pets", validation_size=40)
    assert train.x.dtype == torch.uint8 and train.sample_shape == (3, 5, 6) and train.n_classes == 2
    assert (len(train), len(validation), len(test)) == (560, 40, 4)
    for data in (train, validation, test):
        assert torch.equal(data.y, (data.x[:, 2, 0, 0] == 200).long())
    assert test.y.tolist() == [0, 0, 1, 1] and test.x[:, 1, 0, 0].tolist() == [0, 1, 0, 1]
    seen = torch.cat([train.x[:, 1, 0, 0], validation.x[:, 1, 0, 0]]).bincount(minlength=256)
    assert seen.tolist() == [4] * 44 + [2] * 212


def test_pixels_equal_what_pil_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    for part in ("train", "test"):
        for i in range(2):
            file = tmp_path / part / "a" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    x = load("image_folder", path=tmp_path).test.x
    np.testing.assert_array_equal(x[0].permute(1, 2, 0).numpy(), pixels)
    x = load("image_folder", path=tmp_path, image_size=(4, 3)).test.x
    expected = np.asarray(Image.fromarray(pixels).resize((3, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(x[0].permute(1, 2, 0).numpy(), expected)


def test_sizes_that_differ_need_image_size(folder):
    paint(folder / "train" / "dog" / "zz.png", (0, 0, 200), size=(9, 4))
    with pytest.raises(BadValue, match=r"zz.png is 4x9, others are 5x6.*image_size="):
        load("image_folder", path=folder)
    assert load("image_folder", path=folder, image_size=8).train.sample_shape == (3, 8, 8)


def test_grey_images_become_rgb(folder):
    paint(folder / "test" / "cat" / "zz.png", 77, mode="L")
    assert load("image_folder", path=folder).test.x[2].unique().tolist() == [77]


def test_a_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(DataNotFound, match=r"nowhere/train: expected train/<class>/<image file> and test/"):
        load("image_folder", root=tmp_path, path="nowhere")
    paint(tmp_path / "half" / "train" / "a" / "0.png", 0)
    with pytest.raises(DataNotFound, match=r"half/test"):
        load("image_folder", root=tmp_path, path="half")


def test_a_class_without_images_is_refused(folder):
    (folder / "train" / "bird").mkdir()
    with pytest.raises(DataNotFound, match=r"bird"):
        load("image_folder", path=folder)


def test_train_and_test_must_have_the_same_classes(folder):
    paint(folder / "test" / "bird" / "0.png", 0)
    with pytest.raises(BadValue, match=r"\['bird'\]"):
        load("image_folder", path=folder)


@pytest.mark.parametrize("image_size", [None, 4])
def test_a_broken_image_is_named(folder, image_size):
    (folder / "train" / "cat" / "000.png").write_bytes(b"no image")
    with pytest.raises(BadValue, match=r"000.png cannot be decoded"):
        load("image_folder", path=folder, image_size=image_size)


def test_a_truncated_image_is_named(folder):
    file = folder / "train" / "dog" / "zz.png"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(BadValue, match=r"zz.png cannot be decoded"):
        load("image_folder", path=folder)


def test_options_are_checked(folder):
    with pytest.raises(BadValue, match=r"path is None"):
        load("image_folder")
    with pytest.raises(BadValue, match=r"image_size is 0"):
        load("image_folder", path=folder, image_size=0)
