"""What the device does with a streamed batch, and the choice of where images are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.data import stream
from gkd_jax.data.residency import choose
from gkd_jax.errors import UserError

GB = 10**9


def test_mirrored_and_normalised():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), dtype=np.uint8)
    flip = np.array([True, False, True, False])
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    expected = (np.stack([x[:, ::-1] if f else x for x, f in zip(images, flip, strict=True)]) / 255 - mean) / std
    found = jax.jit(lambda x, f: stream.seen(x, f, mean, std))(jnp.asarray(images), jnp.asarray(flip))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_is_shared_out_among_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = {"images": np.arange(24, dtype=np.uint8).reshape(4, 2, 1, 3), "labels": np.arange(4)}
    found = stream.put(batch, shared)
    np.testing.assert_array_equal(found["images"], batch["images"])
    assert found["labels"].sharding == shared
    assert found["images"].addressable_shards[0].data.shape == (2, 2, 1, 3)


@pytest.mark.parametrize("depth", [0, 1, 3, 99])
def test_batches_are_placed_before_they_are_asked_for(depth):
    placed = []
    batches = stream.ahead(iter(range(5)), lambda x: placed.append(x) or 10 * x, depth)
    assert next(batches) == 0
    assert len(placed) == min(depth + 1, 5)
    assert list(batches) == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("asked", "device", "host", "expected"),
    [
        ("auto", 10 * GB, 100 * GB, "device"),
        ("auto", 3 * GB, 100 * GB, "host"),
        ("host", 10 * GB, 100 * GB, "host"),
        ("device", 4 * GB, 1, "device"),
        ("auto", None, 3 * GB, "device"),  # of a CPU, whose memory is the host's
        ("host", None, 3 * GB, "host"),
    ],
)
def test_images_are_kept_where_there_is_room(asked, device, host, expected):
    found = choose(asked, image_size=None, nbytes=2 * GB, device_free=device, host_free=host)
    assert found.where == expected
    assert "2.00 GB" in found.reason or asked == "host"


@pytest.mark.parametrize(
    ("asked", "device", "host", "message"),
    [
        (
            "auto",
            3 * GB,
            2 * GB,
            "'auto': the images take 2.00 GB; of the device's memory 3.00 GB are free, .* may take 50%",
        ),
        ("device", 3 * GB, 99 * GB, "data.residency is 'device': "),
        ("host", 99 * GB, 2 * GB, "of the host's 2.00 GB that are free they may take 80%; data.num_train takes fewer"),
        ("auto", None, 2 * GB, "the host's memory, which the device shares, 2.00 GB are free"),
    ],
)
def test_where_there_is_none_it_is_said(asked, device, host, message):
    with pytest.raises(UserError, match=message):
        choose(asked, image_size=None, nbytes=2 * GB, device_free=device, host_free=host)


@pytest.mark.parametrize("asked", ["auto", "stream"])
def test_crops_are_streamed(asked):
    found = choose(asked, image_size=224)
    assert found == ("stream", "crops of 224 x 224 pixels are cut from the encoded images")
