"""Kept views: what a file holds, what is lost by it, and what becomes of files that are damaged or missing."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import tfds_case

from gkd_jax.data import stream
from gkd_jax.data.stream import draws, jpeg, kept
from gkd_jax.data.stream.device import teacher_logits
from gkd_jax.data.stream.kept import Kept, Rows, Specification, compressed
from gkd_jax.errors import UserError

IMAGES = tfds_case.photographs(10)
CLASSES, CROPS, TOP = 7, 3, 4
LARGE = 40  # images for whose parts nothing is read


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(kept, "PART", 4)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    tfds_case.write(folder, "tiny", {"train": IMAGES, "test": IMAGES[:2]}, classes=CLASSES)
    return stream.open_streamed("tfds:tiny", image_size=16, data_dir=str(folder))


def specification(**how):
    given = {"examples": 10, "classes": CLASSES, "crops": CROPS, "top": TOP, "size": 16, "seed": 5}
    return Specification(**(given | {"facts": {"teacher": "abc"}} | how))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rows_of(given, images, seed=0):
    rng = np.random.default_rng(seed)
    views = images * given.crops
    logits = 4 * rng.normal(size=(views, given.classes))
    boxes = rng.integers(0, 60000, (views, 4))
    return Rows(boxes, rng.random(views) < 0.5, *compressed(logits, given.top)), logits


def write_all(parent, given):
    store, written = Kept(parent, given), []
    for part in range(given.parts):
        rows, logits = rows_of(given, len(given.images(part)), part)
        store.write(part, rows)
        written.append((rows, logits))
    return store, written


class TestSoftTargets:
    """`compressed` and `teacher_logits` against the definition."""

    @staticmethod
    def dense(logits, top):
        ids, logs, rest = compressed(logits, top)
        return np.asarray(
            teacher_logits(jnp.asarray(ids, jnp.int32), jnp.asarray(logs), jnp.asarray(rest), logits.shape[-1])
        )

    @pytest.mark.parametrize("top", [1, 3, 6, 7])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 1000.0])
    def test_the_likeliest_are_kept_and_the_others_share(self, top, scale):
        logits = scale * np.random.default_rng(0).normal(size=(20, CLASSES))
        found, full = np.exp(self.dense(logits, top)), softmax(logits)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        ids = np.argsort(-full, -1, kind="stable")[:, :top]
        expected = np.repeat(
            (1 - np.take_along_axis(full, ids, -1).sum(-1, keepdims=True)) / max(CLASSES - top, 1), CLASSES, 1
        )
        np.put_along_axis(expected, ids, np.take_along_axis(full, ids, -1), -1)
        # float16 of the logarithm: 2^-11 of it
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=2e-7)

    def test_confident_teachers_keep_what_a_temperature_sees(self):
        logits = np.array([[30.0, 8.0, 5.0, 1.0, 0.0, 0.0, 0.0]])
        full, found = softmax(logits / 4), softmax(self.dense(logits, 4) / 4)
        np.testing.assert_allclose(found[:, :4], full[:, :4], rtol=0.01)
        np.testing.assert_allclose(found[:, 4:], full[:, 4:].mean(), rtol=0.01)

    def test_nothing_is_infinite(self):
        for logits in (np.zeros((1, 3)), np.array([[1e9, 0.0, -1e9]]), np.array([[-1e30, 0.0, 1e30]])):
            for top in (1, 2, 3):
                assert np.isfinite(self.dense(logits, top)).all()


class TestFiles:
    def test_what_was_written_is_read(self, tmp_path):
        given = specification()
        store, written = write_all(tmp_path, given)
        assert given.parts == 3
        assert store.missing() == []
        assert store.damaged() == {}
        boxes, flips, ids, logs, rest = (
            np.concatenate([getattr(rows, name) for rows, _ in written]) for name in Rows._fields
        )
        index, crop = np.array([9, 0, 3, 4, 9]), np.array([0, 2, 1, 1, 2])
        for reader in (store, Kept(tmp_path, given), pickle.loads(pickle.dumps(store))):
            found = reader.rows(index, crop)
            place = index * CROPS + crop
            np.testing.assert_array_equal(found.boxes, boxes[place])
            np.testing.assert_array_equal(found.flip, flips[place])
            np.testing.assert_array_equal(found.ids, ids[place])
            np.testing.assert_array_equal(found.logs, logs[place])
            np.testing.assert_array_equal(found.rest, rest[place])
            assert found.views()[0] == (tuple(boxes[place[0]]), bool(flips[place[0]]))
        targets = stream.soft_targets(found.ids, found.logs, found.rest, CLASSES)
        assert targets.dtype == np.float32
        assert targets.shape == (5, CLASSES)
        full = softmax(np.concatenate([logits for _, logits in written])[place])
        np.testing.assert_array_equal(targets.argmax(-1), full.argmax(-1))
        assert np.abs(targets - full).max() < 0.05

    def test_the_size_is_what_is_said(self, tmp_path):
        given = specification()
        store, _ = write_all(tmp_path, given)
        assert given.nbytes == 10 * CROPS * (11 + 4 * TOP)
        on_disk = sum(store.file(part).stat().st_size for part in range(3))
        assert given.nbytes < on_disk < given.nbytes + 3 * 512
        wide = Specification(examples=1, classes=70_000, crops=1, top=2, size=16)
        assert wide.nbytes == 11 + 6 * 2

    def test_the_description_says_what_they_are(self, tmp_path):
        given = specification()
        store, _ = write_all(tmp_path, given)
        held = json.loads((store.folder / "views.json").read_text())
        assert held["format"] == 1
        assert held["facts"] == {"teacher": "abc"}
        assert held["crops"] == CROPS
        assert store.folder.name == f"views-{given.key}"
        assert {path.name for path in store.folder.iterdir()} == {"views.json", *(store.file(p).name for p in range(3))}

    def test_every_fact_makes_them_others(self):
        keys = {specification().key}
        for how in (
            {"crops": 4},
            {"top": 5},
            {"size": 8},
            {"seed": 6},
            {"flip": False},
            {"facts": {"teacher": "b"}},
            {"examples": 9},
        ):
            keys.add(specification(**how).key)
        assert len(keys) == 8

    @pytest.mark.parametrize("place", ["magic", "version", "header", "payload", "length", "empty"])
    def test_damage_is_found(self, tmp_path, place):
        given = specification()
        store, _ = write_all(tmp_path, given)
        file = store.file(1)
        content = bytearray(file.read_bytes())
        at = {"magic": 0, "version": 8, "header": 30, "payload": len(content) - 9}.get(place)
        if at is not None:
            content[at] ^= 0x41
        else:
            content = content[: -7 if place == "length" else 0]
        file.write_bytes(content)
        reader = Kept(tmp_path, given)
        assert list(reader.damaged()) == [1]
        assert str(file) in reader.damaged()[1]
        assert reader.damaged([0, 2]) == {}
        if place != "payload":
            with pytest.raises(UserError, match="damaged or cut short .*; remove it to compute its views anew"):
                reader.rows(np.array([5]), np.array([0]))
        reader.rows(np.array([0, 9]), np.array([0, 0]))
        reader.remove(1)
        assert reader.missing() == [1]

    def test_a_part_of_others_is_not_taken_for_ours(self, tmp_path):
        store, _ = write_all(tmp_path, specification())
        other, _ = write_all(tmp_path, specification(seed=6))
        store.file(2).write_bytes(other.file(2).read_bytes())
        assert list(Kept(tmp_path, specification()).damaged()) == [2]

    def test_missing_parts(self, tmp_path):
        store = Kept(tmp_path, specification())
        assert store.missing() == [0, 1, 2]
        with pytest.raises(UserError, match="no such file; the views of its images have not been computed yet"):
            store.rows(np.array([0]), np.array([0]))

    def test_a_damaged_description(self, tmp_path):
        given = specification()
        store, _ = write_all(tmp_path, given)
        for content, message in (("{", "damaged, or cannot be read"), ('{"format": 2}', "describes other views")):
            (store.folder / "views.json").write_text(content)
            with pytest.raises(UserError, match=message):
                Kept(tmp_path, given)

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        given = specification()
        store = Kept(tmp_path / "file", given)
        with pytest.raises(UserError, match="cannot write"):
            store.write(0, rows_of(given, 4)[0])

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"top": 8}, "teacher.cache_top is 8; of 7 classes it must be 1 to 7"),
            ({"top": 0}, "teacher.cache_top is 0"),
            ({"crops": 0}, "keeps 0 views of each image"),
        ],
    )
    def test_numbers_that_cannot_be(self, how, message):
        with pytest.raises(UserError, match=message):
            specification(**how)


def teacher(images, flip):
    """A network of a kind: what it says depends on every pixel and on the mirroring."""
    seen = np.where(flip[:, None, None, None], images[:, :, ::-1], images).astype(np.float64) / 255
    weights = np.random.default_rng(0).normal(size=(16 * 16 * 3, CLASSES))
    return (seen.reshape(len(images), -1) @ weights).astype(np.float32)


class TestFill:
    pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")

    def test_the_teacher_is_asked_about_what_the_student_will_see(self, tmp_path, streamed):
        asked = []

        def ask(images, flip):
            asked.append(len(images))
            return teacher(images, flip)

        store = Kept(tmp_path, specification(facts={}))
        assert stream.fill(store, streamed, ask, batch=8, workers=0) == 3
        assert set(asked) == {8}
        assert len(asked) == 2 + 2 + 1  # 12, 12 and 6 views
        batches = stream.train_feed(streamed, seed=1, epochs=3, batch_size=5, kept=store, workers=0)
        crops = []
        with batches:
            for step, batch in enumerate(batches):
                full = softmax(teacher(batch["images"], batch["flip"]).astype(np.float64))
                targets = stream.soft_targets(batch["ids"], batch["logs"], batch["rest"], CLASSES)
                top = np.take_along_axis(full, batch["ids"], -1)
                np.testing.assert_allclose(np.take_along_axis(targets, batch["ids"], -1), top, rtol=0.01, atol=1e-6)
                for index, crop, pixels in zip(batch["index"], batch["crop"], batch["images"], strict=True):
                    encoded = IMAGES[index]
                    view = draws.view(5, int(crop), int(index), *jpeg.size_of(encoded))
                    np.testing.assert_array_equal(pixels, jpeg.cut(encoded, [view.box], 16)[0])
                crops.append((step // 2, dict(zip(batch["index"].tolist(), batch["crop"].tolist(), strict=True))))
        # Three epochs show each of an image's three views
        seen = {index: {views[index] for _, views in crops if index in views} for index in range(10)}
        assert all(views == {0, 1, 2} for views in seen.values())

    def test_hosts_share_the_parts_and_read_them_all(self, tmp_path, streamed):
        alone, given = Kept(tmp_path / "alone", specification()), specification()
        stream.fill(alone, streamed, teacher, batch=8, workers=0)
        for host, parts in ((0, 2), (1, 1)):
            store = Kept(tmp_path / "shared", given)
            assert stream.fill(store, streamed, teacher, batch=8, share=stream.Share(host, 2), workers=0) == parts
        assert Kept(tmp_path / "shared", given).missing() == []
        for part in range(3):
            assert store.file(part).read_bytes() == alone.file(part).read_bytes()

    def test_only_what_is_missing_or_damaged_is_computed(self, tmp_path, streamed):
        store, said = Kept(tmp_path, specification()), []
        stream.fill(store, streamed, teacher, batch=8, workers=0)
        before = [store.file(part).read_bytes() for part in range(3)]
        assert stream.fill(store, streamed, teacher, batch=8, workers=0) == 0
        store.file(0).unlink()
        store.file(2).write_bytes(before[2][:-1])
        assert stream.fill(store, streamed, teacher, batch=8, workers=0, say=said.append) == 2
        assert [store.file(part).read_bytes() for part in range(3)] == before
        assert any("cut short" in text and "computed anew" in text for text in said)

    def test_a_fill_that_was_stopped_goes_on(self, tmp_path, streamed):
        store, calls = Kept(tmp_path, specification()), []

        def polled():
            calls.append(1)
            if len(calls) > 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stream.fill(store, streamed, teacher, batch=8, workers=0, polled=polled)
        assert store.missing() == [1, 2]
        assert stream.fill(store, streamed, teacher, batch=8, workers=0) == 2

    def test_a_teacher_that_is_not_finite(self, tmp_path, streamed):
        store = Kept(tmp_path, specification())
        with pytest.raises(UserError, match="NaN or infinite: it cannot be remembered"):
            stream.fill(store, streamed, lambda images, flip: teacher(images, flip) * np.nan, batch=8, workers=0)
        assert store.missing() == [0, 1, 2]

    def test_a_part_that_is_cut_short_while_training_is_named(self, tmp_path, streamed):
        store = Kept(tmp_path, specification())
        stream.fill(store, streamed, teacher, batch=8, workers=0)
        store.file(1).write_bytes(b"GKDVIEWS")
        with (
            stream.train_feed(
                streamed, seed=1, epochs=1, batch_size=10, kept=Kept(tmp_path, specification()), workers=0
            ) as batches,
            pytest.raises(UserError, match=r"part-00001-of-00003\.views: damaged or cut short"),
        ):
            next(batches)

    def test_a_stream_of_kept_views_goes_on_where_it_stopped(self, tmp_path, streamed):
        store = Kept(tmp_path, specification())
        stream.fill(store, streamed, teacher, batch=8, workers=0)

        def feed(**how):
            return stream.train_feed(streamed, seed=1, epochs=3, batch_size=5, kept=store, workers=0, **how)

        with feed() as whole, feed(start=3) as later:
            every, rest = list(whole), list(later)
        for a, b in zip(every[3:], rest, strict=True):
            assert all((a[name] == b[name]).all() for name in a)
        with pytest.raises(UserError, match="of another run .kept: "):
            stream.train_feed(streamed, seed=1, epochs=3, batch_size=5, workers=0).restore(whole.state())
