"""What the terms read from a network's outputs, and how maps of different size are brought together."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gkd_jax.errors import UserError
from gkd_jax.outputs import Outputs, Setup


def _read(outputs: Outputs | None, name: str) -> Any:
    found = getattr(outputs, name, None)
    if found is None:
        raise UserError(f"a term needs {name!r} of a network's outputs: not computed, or not held by the cache")
    return found


def logits(outputs: Outputs | None) -> Any:
    """Returns the logits [b c], or their shape where `outputs` holds shapes.

    Raises:
      UserError: if there are no outputs.
    """
    return _read(outputs, "logits")


def embedding(outputs: Outputs | None) -> Any:
    """Returns the embedding [b d], or its shape where `outputs` holds shapes.

    Raises:
      UserError: if it was not computed.
    """
    return _read(outputs, "embedding")


def final(outputs: Outputs | None) -> Any:
    """Returns the final map [b h w d], which is pooled to the embedding, or its shape where `outputs` holds shapes.

    Raises:
      UserError: if it was not computed.
    """
    return _read(outputs, "final")


def feature(outputs: Outputs | None, stage: int) -> Any:
    """Returns the feature map [b h w k] of a stage, or its shape where `outputs` holds shapes.

    Args:
      outputs: of a network.
      stage: index into the features, negative from the deepest.

    Raises:
      UserError: if the features were not computed, or there are fewer.
    """
    return _at(_read(outputs, "features"), stage)


def _at(maps: Sequence[Any], stage: int) -> Any:
    if not -len(maps) <= stage < len(maps):
        raise UserError(f"stage is {stage}, but the network has {len(maps)} features: {-len(maps)} to {len(maps) - 1}")
    return maps[stage]


def check_stages(stages: Sequence[int]) -> None:
    """Raises ValueError unless `stages` holds integers."""
    if any(isinstance(stage, bool) or not isinstance(stage, int) for stage in stages):
        raise ValueError(f"stages is {tuple(stages)!r}; allowed: integers, or none for all behind the stem")


def pairs(
    student: Outputs | None,
    teacher: Outputs | None,
    stages: Sequence[int] = (),
    *,
    of: tuple[str, str] = ("features", "features"),
    from_deepest: bool = False,
) -> list[tuple[Any, Any]]:
    """Returns the maps of both networks that a term over several stages compares, shallow to deep.

    Args:
      student: outputs, or their shapes.
      teacher: likewise.
      stages: indices into the maps of both networks. Without any: all behind the stem's. Where one network has more,
        they are then paired from the shallowest on, as the published code's `zip(feat_s[1:-1], feat_t[1:-1])` does
        (its last feature is the embedding), and the other's deepest are left out.
      of: what is compared of the student and of the teacher, "features" or "preact".
      from_deepest: without `stages`, pair from the deepest instead, and leave the shallowest out.

    Raises:
      UserError: if the maps were not computed, there are fewer than a stage asks for, or none behind the stem.
    """
    x, y = _read(student, of[0]), _read(teacher, of[1])
    if stages:
        return [(_at(x, stage), _at(y, stage)) for stage in stages]
    count = min(len(x), len(y)) - 1
    if count < 1:
        raise UserError(
            f"a term needs a stage behind the stem: the student has {len(x)} features, the teacher {len(y)}"
        )
    kept = slice(-count, None) if from_deepest else slice(1, 1 + count)
    return list(zip(x[kept], y[kept], strict=True))


def classifier_kernel(setup: Setup) -> Array:
    """Returns the kernel [d c] of the teacher's classifier.

    Raises:
      UserError: if there is none.
    """
    if setup.teacher_kernel is None:
        raise UserError("a term needs the teacher's classifier, and there is none")
    return setup.teacher_kernel


def gradient(outputs: Outputs | None, name: str) -> Any:
    """Returns the gradient that was asked for under `name`, or its shape where `outputs` holds shapes.

    Raises:
      UserError: if it was not computed.
    """
    grads = _read(outputs, "grads")
    if name not in grads:
        raise UserError(f"a term needs the gradient {name!r}: not computed, or not held by the cache")
    return grads[name]


def windows(size: int, bins: int) -> list[slice]:
    """Returns the windows of adaptive pooling: bin i of n is from floor(i size / n) to ceil((i + 1) size / n)."""
    return [slice(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def _averages(size: int, bins: int) -> np.ndarray:
    """Returns the matrix [bins size] whose rows average those windows."""
    rows = np.zeros((bins, size), np.float32)
    for i, window in enumerate(windows(size, bins)):
        rows[i, window] = 1 / (window.stop - window.start)
    return rows


def pool(x: Float[Array, "b h w k"], height: int, width: int) -> Float[Array, "b height width k"]:
    """Average-pools maps to `height` x `width` positions, in float32.

    Bin i of n averages the rows from floor(i h / n) to ceil((i + 1) h / n), as `adaptive_avg_pool2d` of PyTorch does:
    equal blocks where n divides h, overlapping ones elsewhere.

    Raises:
      ValueError: if the maps are smaller than what they are to become.
    """
    if height > x.shape[1] or width > x.shape[2]:
        raise ValueError(f"cannot pool maps of {x.shape[1]}x{x.shape[2]} positions to {height}x{width}")
    x = x.astype(jnp.float32)
    if x.shape[1:3] == (height, width):
        return x
    return _resample(x, _averages(x.shape[1], height), _averages(x.shape[2], width))


def _resample(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    # The default would round to TF32 or bfloat16 on accelerators.
    return jnp.einsum("ih,bhwk,jw->bijk", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def nearest(x: Float[Array, "b h w k"], height: int, width: int) -> Float[Array, "b height width k"]:
    """Resizes maps to `height` x `width` positions, larger or smaller, in float32.

    Position i of n takes row floor(i h / n), as `interpolate(mode="nearest")` of PyTorch does.
    """
    x = x.astype(jnp.float32)
    if x.shape[1:3] == (height, width):
        return x

    def chosen(size: int, count: int) -> np.ndarray:
        return np.eye(size, dtype=np.float32)[np.arange(count) * size // count]

    # A product with rows of the identity: the derivative of a gather adds up in no fixed order on a GPU.
    return _resample(x, chosen(x.shape[1], height), chosen(x.shape[2], width))


def pool_alike(
    x: Float[Array, "b h w i"], y: Float[Array, "b u v j"], side: int | None = None
) -> tuple[Float[Array, "b p q i"], Float[Array, "b p q j"]]:
    """Average-pools two maps to the smaller of their heights and widths, and to at most `side` of each if given."""
    height, width = (min(x.shape[a], y.shape[a], side or x.shape[a]) for a in (1, 2))
    return pool(x, height, width), pool(y, height, width)


def tokens(x: Float[Array, "b h w k"]) -> Float[Array, "b n k"]:
    """Returns the positions of maps as one set an example."""
    return x.reshape(x.shape[0], -1, x.shape[3])


def moments(
    x: Float[Array, "b n k"], epsilon: float, *, unbiased: bool = False
) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
    """Returns mean and standard deviation, sqrt(variance + epsilon), of each channel over positions, in float32.

    Args:
      x: positions.
      epsilon: keeps the derivative of the root finite.
      unbiased: divide the sum of squares by n - 1 instead of n; the variance of a single position is then 0 too.
    """
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=1)
    n = x.shape[1]
    variance = jnp.sum((x - mean[:, None]) ** 2, axis=1) / (max(n - 1, 1) if unbiased else n)
    return mean, jnp.sqrt(variance + epsilon)
