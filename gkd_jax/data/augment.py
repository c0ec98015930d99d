"""The strong augmentation of an image: two random operations, then a patch that is painted over.

It is what multi-level logit distillation sees beside the ordinary view (Jin, Wang and Lin, "Multi-level Logit
Distillation", CVPR 2023), as in the code of logit standardisation (Sun et al., "Logit Standardization in Knowledge
Distillation", 2024, arXiv 2403.01427, `mdistiller/dataset/cifar100.py`): the operations are FixMatch's (Sohn et al.,
2020, arXiv 2001.07685), an identity among them, drawn with replacement, each with a magnitude that is uniform on its
range; what is called RandAugment(2, 10) there never reads the 10. The arithmetic is Pillow's, in integers.

Every operation is one of three kinds: a curve that maps the levels of a channel, a blend with another image, or a move
of the pixels. An image goes through all three, two of which leave it as it is, so that a batch of different operations
is a few array operations instead of a branch an image.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Counts = Int[Array, "256"]
Curve = Int[Array, "256"]
Image = Int[Array, "h w c"]
Coefficients = Float[Array, "2 3"]

_LEVELS = 256
_MOST_CUT = 0.5  # of the width
_PAINT = (125, 123, 114)
# ITU-R 601 luma in sixteenths of a bit: Pillow's
_LUMA = (19595, 38470, 7471)


# --------------------------------------------------------------------------------------------- curves


def _levels() -> Curve:
    return jnp.arange(_LEVELS, dtype=jnp.int32)


def unchanged(counts: Counts, value: Float[Array, ""]) -> Curve:
    """Returns the curve that leaves each level as it is."""
    return _levels()


def autocontrast(counts: Counts, value: Float[Array, ""]) -> Curve:
    """Returns the curve that stretches the levels of a channel to 0 to 255; a channel of one level stays as it is.

    Args:
      counts: of the channel's pixels of each level.
      value: is not read.
    """
    low, high = _ends(counts)
    stretched = (_levels() - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), _levels())


def equalize(counts: Counts, value: Float[Array, ""]) -> Curve:
    """Returns the curve by which the levels of a channel come to be about equally frequent.

    Args:
      counts: of the channel's pixels of each level.
      value: is not read.
    """
    _, high = _ends(counts)
    step = (jnp.sum(counts) - counts[high]) // 255
    below = jnp.cumsum(counts) - counts
    spread = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, 255), _levels())


def _ends(counts: Counts) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Returns the lowest and the highest level that there is."""
    there = counts > 0
    return jnp.argmax(there), _LEVELS - 1 - jnp.argmax(there[::-1])


def posterize(counts: Counts, value: Float[Array, ""]) -> Curve:
    """Returns the curve that keeps the upper bits of each level, as many as the whole part of `value`."""
    dropped = 8 - jnp.maximum(value.astype(jnp.int32), 1)
    return (_levels() >> dropped) << dropped


def solarize(counts: Counts, value: Float[Array, ""]) -> Curve:
    """Returns the curve that inverts the levels from `value` on."""
    return jnp.where(_levels() < value, _levels(), 255 - _levels())


# --------------------------------------------------------------------------------------------- blends


def itself(image: Image) -> Image:
    """Returns the image."""
    return image


def brightness(image: Image) -> Image:
    """Returns black: what an image is blended with to become darker."""
    return jnp.zeros_like(image)


def color(image: Image) -> Image:
    """Returns the image in grey."""
    return jnp.broadcast_to(_grey(image), image.shape)


def contrast(image: Image) -> Image:
    """Returns an image of the mean grey."""
    grey = _grey(image)
    # Rounded half up, in integers
    return jnp.broadcast_to((2 * jnp.sum(grey) + grey.size) // (2 * grey.size), image.shape)


def sharpness(image: Image) -> Image:
    """Returns the image smoothed by 3x3 weights of 1/13, and 5/13 in the centre; its border stays as it is."""
    h, w, _ = image.shape
    if min(h, w) < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set((2 * inner + 13) // 26)


def _grey(image: Image) -> Int[Array, "h w 1"]:
    """Returns the luma of three channels, or the mean of any other number."""
    if image.shape[-1] == 3:
        luma = jnp.sum(image * jnp.asarray(_LUMA, jnp.int32)[None, None], -1, keepdims=True)
        return (luma + (1 << 15)) >> 16
    return jnp.sum(image, -1, keepdims=True) // image.shape[-1]


# ---------------------------------------------------------------------------------------------- moves
# Each gives the point of the image that is seen at a point (x, y) of the result: [[a, b, c], [d, e, f]] stands for
# (a x + b y + c, d x + e y + f), in pixels from the upper left corner.


def _affine(a: object, b: object, c: object, d: object, e: object, f: object) -> Coefficients:
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in (a, b, c, d, e, f)]).reshape(2, 3)


def still(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the move that moves nothing."""
    return _affine(1, 0, 0, 0, 1, 0)


def rotate(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the rotation by `value` degrees about the centre, counter-clockwise as the image is seen."""
    cos, sin = jnp.cos(value * (math.pi / 180)), jnp.sin(value * (math.pi / 180))
    x, y = width / 2, height / 2
    return _affine(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the shear by which each row is shifted by `value` pixels more than the row above it."""
    return _affine(1, value, 0, 0, 1, 0)


def shear_y(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the shear by which each column is shifted by `value` pixels more than the column left of it."""
    return _affine(1, 0, 0, value, 1, 0)


def translate_x(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the shift to the left by the share `value` of the width."""
    return _affine(1, 0, value * width, 0, 1, 0)


def translate_y(value: Float[Array, ""], height: int, width: int) -> Coefficients:
    """Returns the shift upwards by the share `value` of the height."""
    return _affine(1, 0, 0, 0, 1, value * height)


# ------------------------------------------------------------------------------------------- together


class Operation(NamedTuple):
    """What may be done to an image; two of its three kinds leave the image as it is.

    Attributes:
      low, high: of the magnitude, which is uniform between them.
      curve: `(counts, magnitude) -> curve` of a channel.
      blend: `(image) -> other image`, of which the share 1 - magnitude is mixed in.
      move: `(magnitude, height, width) -> coefficients`.
    """

    low: float
    high: float
    curve: Callable[..., Array] = unchanged
    blend: Callable[..., Array] = itself
    move: Callable[..., Array] = still


OPERATIONS = {
    "autocontrast": Operation(0, 1, curve=autocontrast),
    "brightness": Operation(0.05, 0.95, blend=brightness),
    "color": Operation(0.05, 0.95, blend=color),
    "contrast": Operation(0.05, 0.95, blend=contrast),
    "equalize": Operation(0, 1, curve=equalize),
    "identity": Operation(0, 1),
    "posterize": Operation(4, 8, curve=posterize),
    "rotate": Operation(-30, 30, move=rotate),
    "sharpness": Operation(0.05, 0.95, blend=sharpness),
    "shear_x": Operation(-0.3, 0.3, move=shear_x),
    "shear_y": Operation(-0.3, 0.3, move=shear_y),
    "solarize": Operation(0, 256, curve=solarize),
    "translate_x": Operation(-0.3, 0.3, move=translate_x),
    "translate_y": Operation(-0.3, 0.3, move=translate_y),
}
"""By name, in the published order, with the published ranges of their magnitudes."""


def operate(
    images: UInt8[Array, "b h w c"], which: Int[Array, " b"], value: Float[Array, " b"]
) -> UInt8[Array, "b h w c"]:
    """Does one operation to each image.

    Args:
      images: of any size and number of channels; with three these are red, green and blue.
      which: places in `OPERATIONS`.
      value: magnitudes, in each operation's own range.

    Returns:
      The images, still uint8. What a move brings in from outside is black; it takes the nearest pixel.
    """
    return jax.vmap(_operate)(images.astype(jnp.int32), which, value).astype(jnp.uint8)


def _operate(image: Image, which: Int[Array, ""], value: Float[Array, ""]) -> Image:
    height, width, channels = image.shape

    curves, place = _kinds("curve", which)
    counts = _counts(image)
    curve = jax.lax.switch(place, [jax.vmap(c, (0, None)) for c in curves], counts, value)
    image = jnp.take_along_axis(curve.T, image.reshape(-1, channels), axis=0).reshape(image.shape)

    blends, place = _kinds("blend", which)
    other = jax.lax.switch(place, blends, image)
    share = jnp.where(place > 0, value, 1.0)  # the first is the image itself
    mixed = other.astype(jnp.float32) + share * (image - other).astype(jnp.float32)
    image = jnp.clip(mixed, 0, 255).astype(jnp.int32)

    moves, place = _kinds("move", which)
    coefficients = jax.lax.switch(place, [lambda v, m=move: m(v, height, width) for move in moves], value)
    return _moved(image, coefficients)


def _kinds(kind: str, which: Int[Array, ""]) -> tuple[list[Callable[..., Array]], Int[Array, ""]]:
    """Returns the different functions of a kind, the idle one first, and the place of the one that is meant."""
    nothing = getattr(Operation(0, 0), kind)
    each = [getattr(operation, kind) for operation in OPERATIONS.values()]
    different = [nothing, *(function for function in each if function is not nothing)]
    places = jnp.asarray([different.index(function) for function in each], jnp.int32)
    return different, places[which]


def _counts(image: Image) -> Int[Array, "c 256"]:
    """Returns how many pixels of each channel have each level."""
    pixels = image.reshape(-1, image.shape[-1])
    return jax.vmap(lambda levels: jnp.bincount(levels, length=_LEVELS))(pixels.T)


def _moved(image: Image, coefficients: Coefficients) -> Image:
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(k[0] * x + k[1] * y + k[2]).astype(jnp.int32) for k in coefficients)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = jnp.where(inside, row * width + column, 0).reshape(-1)
    seen = image.reshape(-1, channels)[source].reshape(image.shape)
    return jnp.where(inside[..., None], seen, 0)


def cutout(
    images: UInt8[Array, "b h w c"], side: Float[Array, " b"], x: Float[Array, " b"], y: Float[Array, " b"]
) -> UInt8[Array, "b h w c"]:
    """Paints a square of each image over with one colour, (125, 123, 114) or its grey.

    As published: what would lie left of the image or above it moves the square, what lies right or below is cut off,
    and the last column and row are painted too (DeVries and Taylor, 2017, arXiv 1708.04552, cut on all sides).

    Args:
      images: of any size.
      side: of the square, in pixels; it need not be whole.
      x: of its centre, in pixels from the left.
      y: of its centre, in pixels from above.
    """
    _, height, width, channels = images.shape

    def painted(centre: Array, size: int) -> Array:
        first = jnp.maximum(centre - side / 2, 0).astype(jnp.int32)
        last = jnp.minimum(first + side, size).astype(jnp.int32)
        places = jnp.arange(size)[None]
        return (places >= first[:, None]) & (places <= last[:, None])

    inside = painted(y, height)[:, :, None, None] & painted(x, width)[:, None, :, None]
    colour = _PAINT if channels == 3 else (sum(c * k for c, k in zip(_PAINT, _LUMA, strict=True)) + 32768 >> 16,)
    paint = jnp.broadcast_to(jnp.asarray(colour, images.dtype), (channels,))[None, None, None]
    return jnp.where(inside, paint, images)


def strong(key: PRNGKeyArray, images: UInt8[Array, "b h w c"], *, operations: int = 2) -> UInt8[Array, "b h w c"]:
    """Returns each image after some random operations and a cutout; a function of its arguments alone.

    As published, the square has a side of up to half the width, and a centre from 1 to the width and height.

    Args:
      key: a threefry key gives the same on every backend and number of devices.
      images: uint8, ordinary views.
      operations: how many, one after another, each any of `OPERATIONS`.

    Returns:
      The images, still uint8.
    """
    count, height, width, _ = images.shape
    chosen, cut = jax.random.split(key)
    # A loop: unrolled, XLA fuses each operation into the next, and computes half of it twice
    images, _ = jax.lax.scan(lambda x, given: (operate(x, *given), None), images, _drawn(chosen, operations, count))
    side, x, y = jax.random.uniform(cut, (3, count))
    return cutout(images, _MOST_CUT * side * width, width - (width - 1) * x, height - (height - 1) * y)


def _drawn(key: PRNGKeyArray, operations: int, count: int) -> tuple[Int[Array, "n b"], Float[Array, "n b"]]:
    """Returns which operations are done to each image, and their magnitudes."""
    chosen, magnitudes = jax.random.split(key)
    which = jax.random.randint(chosen, (operations, count), 0, len(OPERATIONS))
    low, high = (jnp.asarray([getattr(o, end) for o in OPERATIONS.values()], jnp.float32) for end in ("low", "high"))
    return which, low[which] + (high[which] - low[which]) * jax.random.uniform(magnitudes, (operations, count))
