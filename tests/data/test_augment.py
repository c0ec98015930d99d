"""The strong augmentation: every operation against Pillow's, and what is drawn against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import data
from gkd_jax.data import augment

Image = pytest.importorskip("PIL.Image")
from PIL import ImageDraw, ImageEnhance, ImageOps  # noqa: E402

COUNT = 32

# As published, in terms of the library that the published code calls
PILLOW = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterize": lambda image, v: ImageOps.posterize(image, max(1, int(v))),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: image.transform(image.size, Image.AFFINE, (1, v, 0, 0, 1, 0)),
    "shear_y": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, v, 1, 0)),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "translate_x": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, v * image.width, 0, 1, 0)),
    "translate_y": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, 0, 1, v * image.height)),
}
RANGES = {
    **dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 1)),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95)),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3)),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "solarize": (0, 256),
}


@pytest.fixture(scope="module")
def images():
    """Images of every contrast around every level: 24 x 20 pixels of three channels."""
    rng = np.random.default_rng(0)
    level, spread = rng.integers(0, 256, (COUNT, 1, 1, 3)), rng.integers(1, 120, (COUNT, 1, 1, 3))
    made = np.clip(level + spread * rng.normal(size=(COUNT, 24, 20, 3)), 0, 255).astype(np.uint8)
    made[0], made[1, ..., 1] = 77, 200  # an image, and a channel, of one level
    return made


@pytest.fixture(scope="module")
def operate():
    return jax.jit(augment.operate)


def test_the_published_operations_in_their_ranges():
    assert list(augment.OPERATIONS) == list(PILLOW)
    assert {name: (o.low, o.high) for name, o in augment.OPERATIONS.items()} == RANGES


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", PILLOW)
def test_every_operation(images, operate, name, channels):
    low, high = RANGES[name]
    values = np.linspace(low, high, COUNT, endpoint=False, dtype=np.float32) + np.float32((high - low) / 7e3)
    given = images[..., :channels]
    which = jnp.full(COUNT, list(PILLOW).index(name))
    got = operate(jnp.asarray(given), which, jnp.asarray(values))
    assert got.dtype == np.uint8
    squeezed = given if channels == 3 else given[..., 0]
    each = zip(squeezed, values, strict=True)
    want = np.stack([np.asarray(PILLOW[name](Image.fromarray(x), float(v))) for x, v in each]).reshape(given.shape)
    off = np.abs(np.asarray(got).astype(int) - want)
    if name == "autocontrast":  # Pillow truncates what it has rounded before
        assert off.max() <= 1
        assert (off > 0).mean() < 0.03
    elif name in ("rotate", "shear_x", "shear_y"):  # where a point lies between two pixels, up to rounding
        assert (off > 0).mean() < 2e-3
    else:
        assert off.max() == 0
    if name not in ("identity", "color"):
        assert (want != given).mean() > 0.2


def test_operations_mixed_in_a_batch(images, operate):
    """Each image gets its own, whatever the others get."""
    which = jnp.arange(COUNT) % len(PILLOW)
    values = jnp.asarray([np.mean(RANGES[list(PILLOW)[i]]) for i in np.asarray(which)], jnp.float32)
    together = operate(jnp.asarray(images), which, values)
    for i in (1, 2, 4, 7, 13):
        same = jnp.full(COUNT, which[i])
        alone = operate(jnp.asarray(images), same, jnp.full(COUNT, values[i]))
        np.testing.assert_array_equal(together[i], alone[i])


@pytest.mark.parametrize("channels", [3, 1])
def test_cutout(images, channels):
    rng = np.random.default_rng(1)
    height, width = images.shape[1:3]
    side, x, y = (rng.uniform(low, high, COUNT).astype(np.float32) for low, high in ((0, 5), (1, width), (1, height)))
    got = augment.cutout(*map(jnp.asarray, (images[..., :channels], side, x, y)))
    colour = (125, 123, 114) if channels == 3 else (123,)
    for i in range(COUNT):
        left, top = int(max(0, x[i] - side[i] / 2)), int(max(0, y[i] - side[i] / 2))
        canvas = Image.fromarray(images[i])
        box = (left, top, min(width, left + side[i]), min(height, top + side[i]))
        ImageDraw.Draw(canvas).rectangle(box, (1, 2, 3))
        painted = (np.asarray(canvas) == (1, 2, 3)).all(-1)
        assert painted.any()
        want = np.where(painted[..., None], np.asarray(colour, np.uint8), images[i][..., :channels])
        np.testing.assert_array_equal(got[i], want)


def test_a_square_at_the_border_is_cut_off():
    white = jnp.full((2, 8, 8, 3), 255, jnp.uint8)
    got = augment.cutout(white, jnp.full(2, 4.0), jnp.asarray([8.0, 1.0]), jnp.asarray([8.0, 1.0]))
    painted = np.asarray(got[..., 0] == 125)
    np.testing.assert_array_equal(painted[0].any(0), [0, 0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(painted[1].any(0), [1, 1, 1, 1, 1, 0, 0, 0])  # moved in, not cut


def test_what_is_drawn():
    """All operations alike often, with magnitudes uniform on their ranges, independent of one another."""
    count = 4000
    which, values = map(np.asarray, augment._drawn(jax.random.key(0), 2, count))
    expected = 2 * count / len(PILLOW)
    often = np.bincount(which.ravel(), minlength=len(PILLOW))
    assert np.sum((often - expected) ** 2 / expected) < 36  # chi squared of 13 degrees: less in 999 of 1,000
    assert np.mean(which[0] == which[1]) == pytest.approx(1 / len(PILLOW), abs=0.02)
    for place, (low, high) in enumerate(augment.OPERATIONS[name][:2] for name in PILLOW):
        share = (values[which == place] - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        assert share.mean() == pytest.approx(0.5, abs=0.05)


def test_the_square_that_is_painted_over():
    """Its mean area, against the published definition."""
    white = jnp.full((4000, 8, 12, 1), 255, jnp.uint8)
    got = np.asarray(augment.strong(jax.random.key(0), white, operations=0))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(4000):
        side, x, y = rng.uniform(0, 0.5) * 12, rng.uniform(1, 12), rng.uniform(1, 8)
        left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
        right, bottom = min(11, int(min(12, left + side))), min(7, int(min(8, top + side)))
        areas.append((right - left + 1) * (bottom - top + 1))
    assert np.mean(np.sum(got == 123, (1, 2))) == pytest.approx(np.mean(areas), rel=0.06)


def test_a_function_of_its_key(images):
    augmented = jax.jit(data.strong)
    first, again, other = (augmented(jax.random.key(seed), jnp.asarray(images)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.asarray(first) != np.asarray(other)) > 0.3
    assert np.mean(np.asarray(first) != images) > 0.3
    assert first.dtype == np.uint8
