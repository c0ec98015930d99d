"""Views: every id against slicing by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.data import crop_flip, identity_view, normalise, num_views, pad_images


def by_hand(image, pad, flip):
    """All views of one image, in the order of their ids."""
    height, width, channels = image.shape
    canvas = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
    canvas[pad : pad + height, pad : pad + width] = image
    views = []
    for dy in range(2 * pad + 1):
        for dx in range(2 * pad + 1):
            crop = canvas[dy : dy + height, dx : dx + width]
            views += [crop, crop[:, ::-1]] if flip else [crop]
    return np.stack(views)


@pytest.mark.parametrize(
    ("pad", "flip", "count", "shape"),
    [(4, True, 162, (32, 32, 3)), (1, False, 9, (8, 8, 1)), (2, True, 50, (6, 9, 2)), (0, True, 2, (4, 5, 3)),
     (0, False, 1, (4, 4, 1))],
)  # fmt: skip
def test_every_view(pad, flip, count, shape):
    assert num_views(pad, flip) == count
    images = np.random.default_rng(0).integers(1, 256, (3, *shape), dtype=np.uint8)
    padded = jnp.asarray(pad_images(images, pad))
    jitted = jax.jit(functools.partial(crop_flip, pad=pad, flip=flip))
    for row in (0, 2):
        index, view = jnp.full(count, row, jnp.int32), jnp.arange(count, dtype=jnp.int32)
        got = jitted(padded, index, view)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, by_hand(images[row], pad, flip))
    assert len({view.tobytes() for view in by_hand(images[0], pad, flip)}) == count


def test_rows_and_views_mixed():
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    index, view = np.array([4, 0, 0, 3, 2, 2]), np.array([0, 17, 3, 8, 11, 17])
    got = crop_flip(jnp.asarray(pad_images(images, 1)), jnp.asarray(index), jnp.asarray(view), pad=1, flip=True)
    np.testing.assert_array_equal(got, [by_hand(images[i], 1, True)[v] for i, v in zip(index, view, strict=True)])


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (1, False), (0, False), (3, True)])
def test_the_identity_view_is_the_image(pad, flip):
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    view = jnp.full(2, identity_view(pad, flip), jnp.int32)
    got = crop_flip(jnp.asarray(pad_images(images, pad)), jnp.arange(2), view, pad=pad, flip=flip)
    np.testing.assert_array_equal(got, images)


def test_the_border_is_black_before_normalisation():
    padded = pad_images(np.full((1, 2, 2, 1), 200, np.uint8), 1)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[0, :, :, 0], np.pad(np.full((2, 2), 200), 1))
    border = normalise(jnp.asarray(padded), [0.5], [0.25])[0, 0, 0, 0]
    assert float(border) == -2.0


def test_normalise_against_numpy():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = (images.astype(np.float64) / 255 - mean) / std
    for statistics in ((mean, std), (np.array(mean), np.array(std)), (jnp.array(mean), jnp.array(std))):
        got = jax.jit(lambda x, s=statistics: normalise(x, *s))(jnp.asarray(images))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_batch_sharded_over_devices_gathers_alike():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over, copied = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    images = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    padded = jax.device_put(pad_images(images, 1), copied)
    index, view = (jax.device_put(jnp.array(x, jnp.int32), over) for x in ([5, 1, 0, 2], [17, 2, 9, 4]))
    got = jax.jit(functools.partial(crop_flip, pad=1, flip=True))(padded, index, view)
    np.testing.assert_array_equal(got, [by_hand(images[i], 1, True)[v] for i, v in ((5, 17), (1, 2), (0, 9), (2, 4))])
