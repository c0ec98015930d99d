"""Encoded images to pixels: boxes that are cut and scaled, as torchvision does it, by Pillow.

A JPEG may be decoded at a half, a quarter or an eighth of its size, for less work (`Image.draft`). That is done where
the box, reduced so, still has `GAP` times as many pixels a side as are wanted: then what is scaled down afterwards is
scaled down as before, and hardly differs. `python -m experiments.stream_benchmark` measures both, the difference and
the speed.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gkd_jax.data.stream.draws import Box
from gkd_jax.errors import UserError

GAP = 2.0  # as of Pillow's own `thumbnail`
_REDUCTIONS = (8, 4, 2)
_CENTRE = 0.875  # of the shorter side: 224 of 256

Pixels = UInt8[np.ndarray, "s s 3"]


def size_of(encoded: bytes) -> tuple[int, int]:
    """Returns height and width; only the file's head is read.

    Raises:
      UserError: if it is no image.
    """
    with _opened(encoded) as image:
        return image.height, image.width


def cut(encoded: bytes, boxes: Sequence[Box], size: int, gap: float = GAP) -> list[Pixels]:
    """Returns boxes of an image, each scaled to `size` x `size` by the triangle filter over all pixels that it covers.

    The image is decoded once for all boxes that are reduced alike, in most images for all.

    Args:
      encoded: JPEG, PNG or whatever Pillow reads; grey, CMYK and transparent images become RGB.
      boxes: inside the image.
      size: side of the result.
      gap: see above; infinity never reduces.

    Raises:
      UserError: if it is no image, cut short or damaged.
    """
    decoded: dict[int, tuple[Image.Image, int]] = {}
    found = []
    for box in boxes:
        by = reduction(min(box.height, box.width), size, gap)
        if by not in decoded:
            decoded[by] = _decoded(encoded, by)
        found.append(_scaled(*decoded[by], box, size))
    return found


def centre(encoded: bytes, size: int, gap: float = GAP) -> Pixels:
    """Returns the middle of an image: the shorter side scaled to `size` / 0.875, then `size` x `size` cut out.

    For 224 that is torchvision's Resize(256) and CenterCrop(224).

    Args:
      encoded: see `cut`.
      size: side of the result.
      gap: see `cut`.

    Raises:
      UserError: as `cut`.
    """
    height, width = size_of(encoded)
    short = round(size / _CENTRE)
    by = reduction(min(height, width), short, gap)
    image, _ = _decoded(encoded, by)
    h, w = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    image = image.resize((w, h), Image.Resampling.BILINEAR)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def reduction(side: int, size: int, gap: float = GAP) -> int:
    """Returns by how much an image may be reduced while it is decoded: 8, 4, 2 or 1.

    Args:
      side: the shorter one of what is cut out, in pixels.
      size: that it is scaled to.
      gap: see above.
    """
    return next((by for by in _REDUCTIONS if side >= gap * by * size), 1)


def _opened(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except Exception as error:  # of a damaged head each format raises its own
        raise UserError(f"no image that can be read ({_said(error)})") from error


def _decoded(encoded: bytes, by: int) -> tuple[Image.Image, int]:
    """Returns an image in RGB, and by how much its sides are reduced: by `by`, if its format can, else by 1."""
    image = _opened(encoded)
    whole = image.size
    if by > 1:
        image.draft(None, (image.width // by, image.height // by))  # in its own mode
    try:
        return image.convert("RGB"), 1 if image.size == whole else by
    except Exception as error:  # Pillow, zlib and libjpeg each have their own
        raise UserError(f"a damaged image, or one that is cut short ({_said(error)})") from error


def _said(error: Exception) -> str:
    # Pillow's message has the place of the bytes in memory
    return str(error).partition(" <")[0] or type(error).__name__


def _scaled(image: Image.Image, by: int, box: Box, size: int) -> Pixels:
    # Cut before it is scaled: the filter must see nothing beyond the box
    left, top = box.left / by, box.top / by
    right, bottom = (box.left + box.width) / by, (box.top + box.height) / by
    x, y = math.floor(left), math.floor(top)
    image = image.crop((x, y, min(math.ceil(right), image.width), min(math.ceil(bottom), image.height)))
    inside = (left - x, top - y, min(right - x, image.width), min(bottom - y, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=inside))
