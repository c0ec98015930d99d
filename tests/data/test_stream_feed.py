"""Streamed batches: the same whatever makes them, from wherever they go on, and however many hosts share them."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_case

from gkd_jax import config, data
from gkd_jax.data import stream
from gkd_jax.data.stream import draws, jpeg, records
from gkd_jax.data.stream import feed as batches
from gkd_jax.errors import UserError

pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")

IMAGES = tfds_case.photographs(43)
TEST = tfds_case.photographs(11, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("sets")
    tfds_case.write(parent, "tiny", {"train": IMAGES, "validation": TEST})
    return parent


@pytest.fixture(scope="module")
def streamed(folder):
    return opened(folder)


def opened(folder, **how):
    return stream.open_streamed("tfds:tiny", **({"image_size": 16, "data_dir": str(folder)} | how))


def feed(streamed, workers=0, **how):
    return stream.train_feed(streamed, **({"seed": 3, "epochs": 2, "batch_size": 8, "workers": workers} | how))


def taken(batches, count=None):
    with batches:
        return [next(batches) for _ in range(len(batches) - batches.step if count is None else count)]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def whole(streamed):
    return taken(feed(streamed))


def test_a_set_is_known_without_its_images(streamed):
    assert streamed.sizes == (43, 0, 11)
    assert streamed.image_shape == (16, 16, 3)
    assert streamed.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal(streamed.train_rows, np.arange(43))
    assert streamed.mean.dtype == np.float32


def test_an_epoch_shows_every_image_once_but_for_the_last_partial_batch(whole):
    assert len(whole) == 2 * (43 // 8)
    first, second = (np.concatenate([b["index"] for b in part]) for part in (whole[:5], whole[5:]))
    np.testing.assert_array_equal(first, draws.order(3, 0, 43)[:40])
    np.testing.assert_array_equal(second, draws.order(3, 1, 43)[:40])


def test_a_batch_holds_what_was_drawn(whole):
    for step in (0, 7):
        batch = whole[step]
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
            "images": ((8, 16, 16, 3), "uint8"),
            "flip": ((8,), "bool"),
            "labels": ((8,), "int32"),
            "index": ((8,), "int32"),
        }
        for place, index in enumerate(batch["index"]):
            view = draws.view(3, step // 5, int(index), *jpeg.size_of(IMAGES[index]))
            np.testing.assert_array_equal(batch["images"][place], jpeg.cut(IMAGES[index], [view.box], 16)[0])
            assert batch["flip"][place] == view.flip
            assert batch["labels"][place] == index % 3
    assert any(batch["flip"].any() and not batch["flip"].all() for batch in whole)


def test_nothing_is_mirrored_without_flips(folder):
    batches = taken(feed(opened(folder, flip=False)))
    assert not any(batch["flip"].any() for batch in batches)


@pytest.mark.parametrize("step", [0, 3, 5, 9, 10])
def test_a_stream_goes_on_bit_equal_where_another_stopped(streamed, whole, step):
    begun = feed(streamed)
    assert_equal(taken(begun, step), whole[:step])
    state = begun.state()
    assert isinstance(state, bytes)
    again = feed(streamed, epochs=2)
    again.restore(state)
    assert again.step == step
    assert_equal(taken(again), whole[step:])
    assert_equal(taken(feed(streamed, start=step)), whole[step:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_every_batch(streamed, whole, hosts):
    parts = [taken(feed(streamed, share=stream.Share(host, hosts))) for host in range(hosts)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_and_go_on(streamed, whole):
    begun = feed(streamed, workers=2)
    assert_equal(taken(begun, 4), whole[:4])
    again = feed(streamed, workers=3)
    again.restore(begun.state())
    assert_equal(taken(again), whole[4:])


def test_states_of_other_runs_are_refused(streamed):
    state = feed(streamed).state()
    for how, message in (
        ({"seed": 4}, "the state of the stream is of another run .seed: 3 -> 4"),
        ({"batch_size": 4}, "another run .batch_size: 8 -> 4"),
    ):
        with pytest.raises(UserError, match=message):
            feed(streamed, **how).restore(state)
    with pytest.raises(UserError, match="another run .step 99 of 10"):
        feed(streamed).restore(state.replace(b'"step": 0', b'"step": 99'))
    for damaged in (b"", b"{}", state[:-5], b"[1]"):
        with pytest.raises(UserError, match="the state of the stream is damaged"):
            feed(streamed).restore(damaged)


def test_evaluation_sees_every_image_once_and_knows_what_fills_the_last_batch(streamed):
    for share in (stream.Share(), stream.Share(1, 2)):
        batches = taken(stream.centre_feed(streamed, "test", batch_size=4, share=share, workers=0))
        index, labels = (np.concatenate([b[name] for b in batches]) for name in ("index", "labels"))
        images = np.concatenate([b["images"] for b in batches])
        real = labels != stream.NO_LABEL
        assert len(batches) == 3
        assert set(index[real]) == (set(range(11)) if share.count == 1 else {2, 3, 6, 7, 10})
        np.testing.assert_array_equal(labels[real], index[real] % 3)
        for place in np.flatnonzero(real):
            np.testing.assert_array_equal(images[place], jpeg.centre(TEST[index[place]], 16))
        assert not images[~real].any()


def test_held_out_images_are_not_trained_on(folder):
    given = opened(folder, val_fraction=0.2, num_train=20)
    assert given.sizes == (20, 9, 11)
    assert not set(given.train_rows) & set(given.val_rows)
    (batch,) = taken(stream.centre_feed(given, "val", batch_size=9, workers=0))
    np.testing.assert_array_equal(batch["labels"], given.val_rows % 3)
    labels = np.concatenate([b["labels"] for b in taken(feed(given, epochs=1, batch_size=10))])
    index = np.concatenate([b["index"] for b in taken(feed(given, epochs=1, batch_size=10))])
    np.testing.assert_array_equal(labels, given.train_rows[index] % 3)
    assert given.digest != opened(folder).digest
    assert given.seen_by(opened(folder).record()) == 9
    assert given.seen_by(given.record()) == 0
    assert given.seen_by({**given.record(), "train_digest": "another"}) is None


def test_sizes_that_do_not_fit(streamed):
    with pytest.raises(UserError, match="batch_size is 8; it must be a multiple of the 3 processes"):
        feed(streamed, share=stream.Share(0, 3))
    with pytest.raises(UserError, match="batch_size is 44 but the training split has 43 examples"):
        feed(streamed, batch_size=44)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_image_is_named_by_file_and_record(tmp_path, workers):
    images = [*IMAGES[:9], IMAGES[9][: len(IMAGES[9]) * 2 // 3], *IMAGES[10:12]]
    tfds_case.write(tmp_path, "tiny", {"train": images, "test": TEST})
    batches = feed(opened(tmp_path), workers=workers, epochs=1, batch_size=4)
    place = r"tiny-train\.array_record-00001-of-00002, record 3: a damaged image, or one that is cut short \(.*\)$"
    with pytest.raises(UserError, match=place):
        taken(batches)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_record_file_is_named(tmp_path, damage, workers):
    target = tfds_case.write(tmp_path, "tiny", {"train": IMAGES, "test": TEST})
    file = target / "tiny-train.array_record-00001-of-00002"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2 : len(content) // 2 + 99] = bytes(99)
    file.write_bytes(content)
    batches = feed(opened(tmp_path), workers=workers, epochs=1)
    with pytest.raises(UserError, match=r"tiny-train\.array_record-00001-of-00002, record \d+: ") as caught:
        taken(batches)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_gone(tmp_path):
    target = tfds_case.write(tmp_path, "tiny", {"train": IMAGES, "test": TEST})
    (target / "tiny-train.array_record-00000-of-00002").unlink()
    with pytest.raises(UserError, match=r"array_record-00000-of-00002, record \d+: cannot be read"):
        taken(feed(opened(tmp_path), epochs=1))


def test_labels_out_of_range_are_named(folder):
    train = records.open_splits("tiny", str(folder)).train
    train._classes = 2
    with pytest.raises(UserError, match="record 2: its label is 2; labels must be 0 to 1"):
        train[2]


def test_sets_that_cannot_be_streamed(tmp_path, folder):
    with pytest.raises(UserError, match="data.source is 'digits'; .* must be tfds:NAME"):
        stream.open_streamed("digits", image_size=16)
    with pytest.raises(UserError, match="'imagenet2012' is not prepared in .*; prepare it there as array_record"):
        stream.open_streamed("tfds:imagenet2012", image_size=16, data_dir=str(tmp_path))
    with pytest.raises(UserError, match="data.num_classes is 4 but tfds:tiny has 3"):
        opened(folder, num_classes=4)
    tfds_case.write(tmp_path, "half", {"train": IMAGES})
    with pytest.raises(UserError, match="'half' has the splits train; it must have train, test"):
        stream.open_streamed("tfds:half", image_size=16, data_dir=str(tmp_path))
    tfds_case.write(tmp_path, "unlabelled", {"train": IMAGES, "test": TEST}, labels=False)
    with pytest.raises(UserError, match="'unlabelled' has no features 'image' and 'label'"):
        stream.open_streamed("tfds:unlabelled", image_size=16, data_dir=str(tmp_path))
    with pytest.raises(UserError, match="data.image_size is 16: tfds:tiny is streamed, and cannot be loaded"):
        data.load("tfds:tiny", image_size=16, data_dir=str(folder))


def test_descriptions(folder, tmp_path):
    known = data.describe("tfds:tiny", image_size=16, val_fraction=0.1, data_dir=str(folder))
    assert known == ("tfds:tiny", (16, 16, 3), 3, 39, 4, 11, 0, True)
    known = data.describe("tfds:imagenet2012", image_size=224, data_dir=str(tmp_path))
    assert known == ("tfds:imagenet2012", (224, 224, 3), 1000, 1_281_167, 0, 50_000, 0, True)


def test_mocked_data_of_tfds(folder):
    """By TFDS's own mock, which takes the metadata of the set that is there and the images from the test."""
    examples = [{"image": image, "label": place % 3} for place, image in enumerate(IMAGES)]
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **how: examples, data_dir=str(folder)):
        given = opened(folder)
    batches = taken(feed(given, epochs=1))
    assert_equal(batches, taken(feed(opened(folder), epochs=1)))


def test_without_grain(streamed, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r'streaming needs grain, .*: pip install "gkd_jax\[stream\]"'):
        feed(streamed)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (3, 2), (96, 95)])
def test_workers(monkeypatch, cores, workers):
    """Each core but one has a worker; a single one would do no more than the threads that stand in its place."""
    monkeypatch.setattr(batches, "cores", lambda: cores)
    assert stream.workers_of("auto") == workers
    assert stream.workers_of(5) == 5


def test_a_set_without_its_test_images(folder):
    choosing = opened(folder, test=False)
    assert choosing.sizes == (43, 0, 0)
    assert choosing.digest != opened(folder).digest
    assert choosing.train_digest == opened(folder).train_digest
    assert len(stream.centre_feed(choosing, "test", batch_size=4, workers=0)) == 0


def test_a_configurations_fields_open_either_kind(folder):
    fields = config.default().data.to_dict()
    given = data.open_data(**{**fields, "source": "tfds:tiny", "image_size": 16, "data_dir": str(folder)})
    assert isinstance(given, stream.Streamed)
    assert given.digest == opened(folder).digest
    held = data.open_data(**{**fields, "source": "digits", "pad": 1, "flip": False}, test=False)
    assert isinstance(held, data.Dataset)
    assert held.sizes == (1438, 0, 0)
