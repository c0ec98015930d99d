"""Boxes of encoded images, against PyTorch's filter and Pillow by hand; and what is no image."""

import io

import numpy as np
import pytest
import tfds_case
from PIL import Image

from gkd_jax.data.stream import jpeg
from gkd_jax.data.stream.draws import Box
from gkd_jax.errors import UserError

RNG = np.random.default_rng(0)
PHOTOGRAPH = tfds_case.smooth(RNG, 300, 400)
ENCODED = tfds_case.encoded(PHOTOGRAPH)
NEVER = float("inf")


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_size():
    assert jpeg.size_of(ENCODED) == (300, 400)


@pytest.mark.parametrize("box", [Box(0, 0, 300, 400), Box(10, 20, 200, 100), Box(299, 399, 1, 1), Box(5, 7, 20, 30)])
def test_a_box_is_scaled_as_pytorch_does(box):
    torch = pytest.importorskip("torch")
    (found,) = jpeg.cut(ENCODED, [box], 32, NEVER)
    part = pixels(ENCODED)[box.top : box.top + box.height, box.left : box.left + box.width]
    x = torch.from_numpy(part.astype(np.float32).transpose(2, 0, 1))[None]
    expected = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected[0].numpy().transpose(1, 2, 0)).max() <= 1  # Pillow rounds between both directions


def test_nothing_beyond_the_box_is_seen():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32] = 255
    (found,) = jpeg.cut(tfds_case.encoded(Image.fromarray(image), "PNG"), [Box(32, 0, 32, 64)], 8)
    assert found.max() == 0


@pytest.mark.parametrize(("side", "by"), [(447, 1), (448, 1), (895, 1), (896, 2), (1791, 2), (1792, 4), (9999, 8)])
def test_reduction_leaves_twice_the_pixels(side, by):
    assert jpeg.reduction(side, 224) == by
    assert jpeg.reduction(side, 224, NEVER) == 1


@pytest.mark.parametrize("by", [2, 4, 8])
def test_reduced_decoding_hardly_differs(by):
    size = 300 // (2 * by)
    boxes = [Box(0, 0, 300, 400), Box(1, 3, 299, 303), Box(0, 99, 300, 301)]
    assert {jpeg.reduction(min(box[2:]), size) for box in boxes} >= {by}
    both = list(zip(jpeg.cut(ENCODED, boxes, size), jpeg.cut(ENCODED, boxes, size, NEVER), strict=True))
    assert any((reduced != plain).any() for reduced, plain in both)
    for reduced, plain in both:
        difference = np.abs(reduced.astype(int) - plain)
        assert difference.mean() < 1.5
        assert np.ptp(plain) > 100


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256), (100, 101), (40, 200)])
def test_the_middle_is_torchvisions(shape):
    encoded = tfds_case.encoded(tfds_case.smooth(RNG, *shape))
    found = jpeg.centre(encoded, 28, NEVER)
    # Resize(32) and CenterCrop(28)
    height, width = shape
    w, h = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    small = np.asarray(Image.open(io.BytesIO(encoded)).resize((w, h), Image.Resampling.BILINEAR))
    top, left = int(round((h - 28) / 2.0)), int(round((w - 28) / 2.0))
    np.testing.assert_array_equal(found, small[top : top + 28, left : left + 28])


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_every_image_becomes_rgb(mode, kind):
    encoded = tfds_case.encoded(PHOTOGRAPH.convert(mode), kind)
    (found,) = jpeg.cut(encoded, [Box(0, 0, 300, 400)], 16)
    assert found.shape == jpeg.centre(encoded, 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "no image that can be read"),
        (b"\xff\xd8\xff garbage", "no image that can be read"),
        (ENCODED[: len(ENCODED) // 2], "a damaged image, or one that is cut short"),
        (tfds_case.encoded(PHOTOGRAPH, "PNG")[:2000], "a damaged image, or one that is cut short"),
    ],
)
def test_what_is_no_image_is_said(encoded, message):
    for read in (lambda: jpeg.cut(encoded, [Box(0, 0, 8, 8)], 4), lambda: jpeg.centre(encoded, 8)):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert "0x" not in str(caught.value)
