import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bpfree._errors import BadValue, DataNotFound
from bpfree.data import load


def paint(file, value, size=(6, 5), mode="RGB"):
    """Write an image of one color; size is (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


@pytest.fixture
def folder(tmp_path):
    """Images of cats are red, images of dogs blue, and the green value of an image is its index."""
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


def test_different_sizes_require_image_size(folder):
    paint(folder / "train" / "dog" / "zz.png", (0, 0, 200), size=(9, 4))
    with pytest.raises(BadValue, match=r"zz.png is 4x9, others are 5x6.*set image_size"):
        load("image_folder", path=folder)
    assert load("image_folder", path=folder, image_size=8).train.sample_shape == (3, 8, 8)


def test_gray_images_are_converted_to_rgb(folder):
    paint(folder / "test" / "cat" / "zz.png", 77, mode="L")
    assert load("image_folder", path=folder).test.x[2].unique().tolist() == [77]


def test_a_missing_folder_raises_an_error_with_the_expected_layout(tmp_path):
    with pytest.raises(DataNotFound, match=r"nowhere/train; expected train/<class>/<image file> and test/"):
        load("image_folder", root=tmp_path, path="nowhere")
    paint(tmp_path / "half" / "train" / "a" / "0.png", 0)
    with pytest.raises(DataNotFound, match=r"half/test"):
        load("image_folder", root=tmp_path, path="half")


def test_a_class_without_images_raises_an_error(folder):
    (folder / "train" / "bird").mkdir()
    with pytest.raises(DataNotFound, match=r"bird"):
        load("image_folder", path=folder)


def test_different_classes_in_train_and_test_raise_an_error(folder):
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


RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 4096, (5, 6))
COLOR = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
PALETTE = Image.fromarray(COLOR).convert("P")
SECOND = {"save_all": True, "append_images": [Image.new("RGB", (6, 5))]}


def put(folder, write, name="zz.png"):
    """Write one image of each of two classes to train and test, with ``write(path)``."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            file = folder / part / label / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
    return folder


def write_png(file, pixels, bits, color_type):
    """Write a PNG file of big-endian samples `[H, W]` or `[H, W, C]`."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_pgm(file, pixels, top):
    height, width = pixels.shape
    file.write_bytes(f"P5 {width} {height} {top}\n".encode() + pixels.astype(">u2").tobytes())


def save(image, **options):
    return lambda file: image.save(file, **options)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", lambda f: write_png(f, GRAY, 16, 0), GRAY / 65535),
        ("a.tif", save(Image.fromarray(GRAY.astype(np.uint16))), GRAY / 65535),
        ("a.pgm", lambda f: write_pgm(f, GRAY, 65535), GRAY / 65535),
        ("a.pgm", lambda f: write_pgm(f, GRAY, 4095), GRAY / 4095),
        ("a.tif", save(Image.fromarray((GRAY / 4095).astype(np.float32))), GRAY / 4095),
    ],
    ids=["PNG", "TIFF", "PGM", "PGM of 12 bits", "floats"],
)
def test_gray_images_with_more_than_8_bits_keep_their_precision(tmp_path, name, write, expected):
    put(tmp_path, write, name)
    data = load("image_folder", path=tmp_path)
    assert data.test.x.dtype == torch.float32 and data.test.x.shape == (2, 3, 5, 6)
    for channel in data.test.x[0]:
        np.testing.assert_allclose(channel, expected, atol=1e-5)
    x, _ = data.test.batch(torch.arange(2))
    assert torch.equal(x, data.test.x)
    resized = load("image_folder", path=tmp_path, image_size=3).test.x[0, 0]
    exact = Image.fromarray(expected.astype(np.float32)).resize((3, 3), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resized, np.asarray(exact), atol=1e-5)


def test_images_with_8_and_16_bits_have_the_same_scale(tmp_path):
    for label, pixels in (("a", GRAY), ("b", GRAY // 2)):
        for part in ("train", "test"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.fromarray(COLOR).save(tmp_path / part / label / "0.png")
            write_png(tmp_path / part / label / "1.png", pixels, 16, 0)
    data = load("image_folder", path=tmp_path, standardize=True, augment=["flip"])
    x = data.test.x
    np.testing.assert_allclose(x[0], COLOR.transpose(2, 0, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(x[3, 1], (GRAY // 2) / 65535, atol=1e-6)
    train = data.train.batch(torch.arange(len(data.train)))[0]
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.tif", save(Image.fromarray(GRAY.astype(np.int32))), "black and white are unknown"),
        ("a.tif", save(Image.fromarray(GRAY.astype(np.float32))), "black and white are unknown"),
        ("a.tif", save(Image.fromarray(np.full((5, 6), np.nan, np.float32))), "from nan to nan"),
        ("a.png", save(Image.fromarray(np.dstack([COLOR, GRAY.astype(np.uint8)]))), "transparent pixels"),
        ("a.png", save(Image.merge("LA", [Image.fromarray(COLOR[:, :, 0])] * 2)), "transparent pixels"),
        ("a.png", save(PALETTE, transparency=PALETTE.getpixel((0, 0))), "transparent pixels"),
        ("a.png", save(Image.fromarray(COLOR), transparency=tuple(COLOR[0, 0].tolist())), "transparent"),
        ("a.tif", save(Image.fromarray(COLOR), **SECOND), "2 frames"),
        ("a.webp", save(Image.fromarray(COLOR), **SECOND), "2 frames"),
        ("a.png", lambda f: f.write_bytes(b""), "cannot be decoded"),
        (".a.png", save(Image.fromarray(COLOR)), "are hidden"),
    ],
    ids=[
        "32 bits", "floats in 0..4095", "NaN", "alpha", "gray and alpha", "palette", "transparent color",
        "pages", "animation", "empty", "hidden",
    ],
)  # fmt: skip
def test_unsupported_images_raise_an_error_with_the_file_name(tmp_path, name, write, message):
    put(tmp_path, write, name)
    with pytest.raises(BadValue, match=rf"{name}.*{message}"):
        load("image_folder", path=tmp_path)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", Image.fromarray(GRAY > 2000)),
        ("a.png", Image.fromarray(COLOR).convert("P")),
        ("a.png", Image.fromarray(COLOR).convert("RGBA")),
        ("a.png", Image.fromarray(COLOR).convert("LA")),
        ("a.tif", Image.fromarray(COLOR).convert("CMYK")),
    ],
    ids=["1 bit", "palette", "opaque", "opaque gray", "CMYK"],
)
def test_other_8_bit_modes_are_converted_to_rgb(tmp_path, name, image):
    put(tmp_path, save(image), name)
    x = load("image_folder", path=tmp_path).test.x
    assert x.dtype == torch.uint8
    np.testing.assert_array_equal(x[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_images_are_rotated_by_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the image is the right side of the stored array
    put(tmp_path, save(Image.fromarray(COLOR), exif=exif))
    x = load("image_folder", path=tmp_path).test.x
    np.testing.assert_array_equal(x[0].permute(1, 2, 0), np.rot90(COLOR, -1))


def test_16_bit_color_gives_a_warning(tmp_path):
    put(tmp_path, lambda f: write_png(f, COLOR.astype(int) * 257, 16, 2))
    with pytest.warns(UserWarning, match="4 color images .* upper 8") as caught:
        x = load("image_folder", path=tmp_path).test.x
    assert len(caught) == 1
    np.testing.assert_array_equal(x[0].permute(1, 2, 0), COLOR)


def test_previews_in_mpo_files_are_ignored(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 0, 0))
    put(tmp_path, save(image, format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]), "a.jpg")
    assert load("image_folder", path=tmp_path).test.x[0, 0, 0, 0] > 190


def test_files_that_are_not_read_are_counted(folder):
    (folder / "train" / "cat" / "cat.gif").write_bytes(b"GIF89a")
    (folder / "test" / "stray.png").write_bytes(b"")
    for name in (".DS_Store", "Thumbs.db"):
        (folder / "train" / "cat" / name).write_bytes(b"")
    (folder / "train" / ".cache").mkdir()
    with pytest.raises(DataNotFound, match=r"\.cache"):
        load("image_folder", path=folder)
    (folder / "train" / ".cache").rmdir()
    with pytest.warns(UserWarning, match=r"2 files .*such as .*stray\.png") as caught:
        load("image_folder", path=folder)
    assert len(caught) == 1


@pytest.mark.parametrize("size", [(3,), (3, 3, 3), 2.5, (3, 2.5), -1, "33"])
def test_sizes_are_checked(folder, size):
    with pytest.raises(BadValue, match="image_size"):
        load("image_folder", path=folder, image_size=size)
