"""A remembered teacher says what the teacher says, and is asked once."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.losses import term
from gkd_jax.objective import Line
from gkd_jax.outputs import Gradient
from gkd_jax.schedules import Weight
from gkd_jax.training import recall, shards
from gkd_jax.training.program import Program

pytestmark = pytest.mark.usefixtures("in_large_batches")

# What each level serves; the last one everything that the method needs
TERMS = {
    "logits": {"kd": {"weight": 1.0}},
    "embedding": {
        "kd": {"weight": 1.0},
        "wasserstein": {"weight": 1.0, "solver": "unrolled"},
        "gradient": {"weight": 1.0, "wrt": "classifier"},
    },
    "gradients": {
        "kd": {"weight": 1.0},
        "wasserstein": {"weight": 1.0, "solver": "unrolled"},
        "gradient": {"weight": 1.0},
    },
}


@pytest.fixture
def program(make_job, tmp_path):
    """Returns a function that makes the program of a student of some level's objective."""

    def make(level, cache=None, devices=1, **fields):
        terms = {name: dict(options) for name, options in TERMS[level].items()}
        fields = {"teacher__cache_dir": str(tmp_path / "teachers"), "student__model": "resnet8", **fields}
        return Program(make_job(terms, teacher__cache=cache or level, **fields), devices=jax.devices()[:devices])

    return make


def run(program, steps=4):
    """Returns the state after some steps of the first epoch."""
    state, frozen = program.initial()
    plan, fixed = program.plan(0), program.fixed(frozen)
    for step in range(steps):
        state = jax.block_until_ready(program.step_at(step, state, plan, fixed)(state, plan, fixed))
    return jax.device_get(state), plan, fixed


@pytest.mark.slow
@pytest.mark.parametrize("level", TERMS)
@pytest.mark.parametrize(("devices", "memory"), [(1, 0), (1, 1), (2, 1)], ids=["host", "device", "two devices"])
def test_losses_are_those_of_a_teacher_that_is_asked_at_every_step(program, level, devices, memory):
    online, _, _ = run(program(level, "none", devices))
    remembering = program(level, devices=devices, teacher__cache_memory=memory)
    cached, plan, fixed = run(remembering)
    assert remembering.recall.cache.tier == ("device" if memory else "host")
    assert plan.teacher["logits"].dtype == jnp.float16
    # The step reads nothing of the network any more
    state, frozen = remembering.initial()
    broken = fixed._replace(teacher=jax.tree.map(lambda x: x * jnp.nan, fixed.teacher))
    assert jax.tree.leaves(broken.teacher)
    step = remembering.step_at(0, state, plan, fixed)
    assert np.isfinite(jax.block_until_ready(step(state, plan, broken)).metrics.loss)
    for name in ("ce", *TERMS[level]):
        ours, expected = (float(s.metrics.lines[name].value) for s in (cached, online))
        # float16 has eleven bits: 2^-11 is 5e-4 of each entry, and four steps carry it on
        assert ours == pytest.approx(expected, rel=2e-3, abs=1e-4), name
    assert float(cached.metrics.loss) == pytest.approx(float(online.metrics.loss), rel=5e-4)
    # It is not the same to the last bit: it was looked up
    assert float(cached.metrics.lines["kd"].value) != float(online.metrics.lines["kd"].value)


def test_rows_are_what_the_teacher_says_of_that_view(program, teacher, dataset):
    """The crop by NumPy, the gradient of the summed cross-entropy by `jax.grad`, as a direction."""
    plan = program("gradients").plan(0)
    index, view = int(plan.index[2, 5]), int(plan.view[2, 5])
    corner, mirror = divmod(view, 2)
    dy, dx = divmod(corner, 3)
    crop = np.pad(dataset.train_images[index], ((1, 1), (1, 1), (0, 0)))[dy : dy + 8, dx : dx + 8]
    crop = crop[:, ::-1] if mirror else crop
    x = jnp.asarray((crop[None] / 255.0 - dataset.mean) / dataset.std, jnp.float32)
    label = int(dataset.train_labels[index])

    def loss(x):
        outputs, _ = teacher.model.apply(teacher.variables, x, train=False)
        return -jax.nn.log_softmax(outputs.logits)[0, label], outputs

    gradient, outputs = jax.grad(loss, has_aux=True)(x)
    found = {name: np.asarray(rows[2, 5], np.float32) for name, rows in plan.teacher.items()}
    np.testing.assert_allclose(found["logits"], outputs.logits[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found["embedding"], outputs.embedding[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found["ce@input"], gradient[0] / np.abs(gradient).max(), rtol=2e-3, atol=2e-3)
    assert np.abs(found["ce@input"]).max() == 1


def test_tiny_gradients_keep_their_direction_in_float16():
    gradient = jnp.asarray([[1e-20, -3e-20], [0.0, 0.0], [2.0, 1.0]])
    np.testing.assert_allclose(recall._direction(gradient), [[1 / 3, -1], [0, 0], [1, 0.5]], rtol=1e-6)


def test_the_next_run_asks_the_teacher_nothing(program, capsys):
    first = program("embedding")
    first.plan(0)
    size = 64 * 18
    assert (first.recall.cache.from_disk, first.recall.cache.computed) == (0, size)
    capsys.readouterr()
    # Another seed, and an objective that needs less: the logits have a folder of their own
    for level, seed in (("embedding", 5), ("logits", 0)):
        second = program(level, seed=seed)
        second.plan(0)
        assert (second.recall.cache.from_disk, second.recall.cache.computed) == (size, 0)
        assert f"all {size:,} views are held" in capsys.readouterr().err
    assert program("logits", teacher__cache_dir="off").recall.cache.from_disk == 0


@pytest.mark.parametrize("change", ["weights", "images", "normalisation", "type"])
def test_what_was_kept_of_something_else_is_not_used(program, change):
    program("logits").plan(0)
    other = program("logits", dtype="bfloat16" if change == "type" else "float32")
    job = other.job
    dataset, known = job.dataset, job.teacher.finished
    if change == "weights":
        moved = jax.tree.map(lambda x: x * 1.01, known.variables)
        known = type(known)(**{**_fields(known), "variables": moved})
        job = type(job)(**{**_fields(job), "teacher": job.teacher._replace(finished=known)})
    elif change != "type":
        changed = {
            "images": {"digest": "another"},
            "normalisation": {"mean": dataset.mean + 0.01},
        }[change]
        job = type(job)(**{**_fields(job), "dataset": type(dataset)(**{**_fields(dataset), **changed})})
    assert Program(job, devices=jax.devices()[:1]).recall.cache.from_disk == 0


def test_whatever_rows_depend_on_changes_their_key(teacher, dataset):
    """The keys themselves: files that hold more views than there are now are passed over whatever their key."""

    whole = teacher.finished

    def key(network="resnet8", variables=whole.variables, dtype="float32", platform="cpu", rows="logits", **data):
        known = dataclasses.replace(whole, config={"student": {"model": network}}, variables=variables)
        facts = recall._facts(teacher._replace(finished=known), dataclasses.replace(dataset, **data), dtype, platform)
        return shards.key(**facts, rows=rows)

    changed = {
        "network": key(network="resnet14"),
        "variables": key(variables=jax.tree.map(lambda x: x * 1.01, whole.variables)),
        "images and split": key(digest="another"),
        "mean": key(mean=dataset.mean + 0.01),
        "std": key(std=dataset.std + 0.01),
        "pad": key(pad=dataset.pad + 1),
        "flip": key(flip=not dataset.flip),
        "type": key(dtype="bfloat16"),
        "platform": key(platform="gpu"),
        "rows": key(rows="embedding"),
    }
    assert [what for what, other in changed.items() if other == key()] == []
    # A copy of the weights, and names, which change no output
    copied = jax.tree.map(jnp.copy, whole.variables)
    assert key(variables=copied, name="another", class_names=tuple("efgh")) == key()


def test_what_is_kept_says_what_it_is(program, tmp_path):
    program("embedding").plan(0)
    known = [json.loads(path.read_text()) for path in (tmp_path / "teachers").rglob("describe.json")]
    assert sorted(facts["rows"] for facts in known) == ["embedding", "logits"]
    for facts in known:
        assert (facts["computed_on"], facts["computed_in"], facts["kept_in"]) == ("cpu", "float32", "float16")


def _fields(record):
    return {name: getattr(record, name) for name, field in record.__dataclass_fields__.items() if field.init}


@pytest.mark.parametrize(
    ("level", "cache", "missing"),
    [
        ("embedding", "logits", ["teacher.embedding"]),
        ("gradients", "embedding", ["the gradient ce@input"]),
        ("gradients", "logits", ["teacher.embedding", "the gradient ce@input"]),
    ],
)
def test_an_objective_that_needs_more_has_the_teacher_online(program, capsys, level, cache, missing):
    online = program(level, cache)
    assert online.recall is None
    assert capsys.readouterr().err == ""  # the run said so at its start
    assert recall.unheld(cache, online.lines) == missing
    state, plan, fixed = run(online, steps=1)
    assert plan.teacher == {}
    assert fixed.teacher
    assert np.isfinite(state.metrics.loss)


def test_a_gradient_that_is_drawn_is_not_remembered():
    drawn = Gradient("random@input", "input", lambda logits, teacher, batch, key: logits)
    deep = Gradient("ce@feature:1", "feature:1", lambda logits, teacher, batch, key: logits, cacheable=True)
    kept = Gradient("ce@input", "input", lambda logits, teacher, batch, key: logits, cacheable=True)

    def line(*needs):
        return {"x": Line(term.Term("x", lambda *_: None, frozenset(needs)), Weight((), lambda params, step: 1.0))}

    assert recall.unheld("gradients", line(drawn)) == ["the gradient random@input"]
    assert recall.unheld("gradients", line(deep)) == ["the gradient ce@feature:1"]
    assert recall.unheld("gradients", line(kept, "teacher.logits", "teacher.embedding")) == []
    assert recall.unheld("gradients", line("teacher.features")) == ["teacher.features"]


def test_memory_that_is_not_there_leaves_the_teacher_online(program, capsys, monkeypatch):
    monkeypatch.setattr("gkd_jax.training.tables.available_memory", lambda: 1000)
    _, plan, _ = run(no_room := program("logits"), steps=1)
    assert no_room.recall is None
    assert plan.teacher == {}
    assert no_room.plan(1).teacher == {}
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(
        "teacher.cache = 'logits' is of no use here, the teacher runs at every step: 1,152 rows of logits, one for "
        "each view of each image, however few are looked up, take 9,216 bytes",
        said,
    )


def test_a_teacher_without_an_embedding_is_asked_at_every_step(program, capsys):
    bare = program("logits", "embedding")
    whole = bare.job.teacher
    model = whole.model._replace(apply=lambda *args, **more: _without_embedding(*whole.model.apply(*args, **more)))
    job = type(bare.job)(**{**_fields(bare.job), "teacher": whole._replace(model=model)})
    bare = Program(job, devices=jax.devices()[:1])
    state, plan, _ = run(bare, steps=1)
    assert plan.teacher == {}
    assert np.isfinite(state.metrics.loss)
    assert "the teacher resnet8 gives no embedding, which it is to hold" in capsys.readouterr().err


def _without_embedding(outputs, statistics):
    return outputs._replace(embedding=None), statistics


def test_a_run_that_is_over_opens_nothing(program, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recall, "Cache", pytest.fail)
    over = program("logits")
    _, frozen = over.initial()
    over.fixed(frozen)
    assert over.recall
    assert not (tmp_path / "teachers").exists()
    assert capsys.readouterr().err == ""


def test_where_the_rows_are_is_said(program, tmp_path, capsys):
    program("logits").plan(0)
    folder = tmp_path / "teachers"
    # Four float16 in memory, and an int32 more on disk, for each of 64 images in 18 views
    told = (
        "teacher.cache: 0.0 MB of logits in the host's memory, {} views of them from {}, where all of them take 0.0 MB"
    )
    assert told.format(0, folder) in capsys.readouterr().err
    again = program("logits", seed=1)
    again.plan(0)
    assert (again.recall.cache.nbytes, again.recall.cache.on_disk) == (1152 * 8, 1152 * 12)
    assert told.format("1,152", folder) in capsys.readouterr().err
    program("logits", teacher__cache_dir="off").plan(0)
    assert "0.0 MB of logits in the host's memory, none on disk" in capsys.readouterr().err


@pytest.mark.parametrize(("fields", "seeds"), [({}, 1), ({"seeds": (3, 11)}, 2), ({"seeds_share_batches": True}, 1)])
def test_the_cost_is_that_of_the_seeds_that_draw(program, monkeypatch, fields, seeds):
    found = []
    choose = recall.Cache.choose
    monkeypatch.setattr(recall.Cache, "choose", lambda self, *given: found.append(given) or choose(self, *given))
    if "seeds_share_batches" in fields:
        fields = {**fields, "seeds": (3, 11)}
    program("logits", **fields).plan(0)
    assert found == [(2, 64 * seeds, seeds)]


@pytest.mark.parametrize(("devices", "most", "expected"), [(1, None, 128), (1, 5000, 1152), (2, 15, 16)])
def test_no_more_views_are_in_memory_than_are_asked_for_at_a_time(program, monkeypatch, devices, most, expected):
    """All 1,152 views go through the teacher, so many at a time, shared evenly between devices."""
    monkeypatch.undo()
    if most is not None:
        monkeypatch.setattr(recall, "views_at_once", lambda _: most)
    seen = program("logits", devices=devices, teacher__cache_dir="off", epochs=200)
    whole, sizes = seen.job.teacher, set()

    def apply(variables, images, **more):
        sizes.add(len(images))
        return whole.model.apply(variables, images, **more)

    job = type(seen.job)(**{**_fields(seen.job), "teacher": whole._replace(model=whole.model._replace(apply=apply))})
    seen = Program(job, devices=jax.devices()[:devices])
    seen.plan(0)
    assert seen.recall.cache.computed == 1152
    assert max(sizes) == expected


def test_few_epochs_fill_as_they_go_and_many_up_front(program, capsys, monkeypatch):
    """18 views of 64 images in batches of 16: an epoch needs 64 of 1,152."""
    monkeypatch.setattr(recall, "views_at_once", lambda _: 16)
    few = program("logits", epochs=2)
    few.plan(0)
    assert few.recall.cache.computed == 64
    assert "by epoch" in capsys.readouterr().err
    few.plan(1)
    assert 64 < few.recall.cache.computed <= 128
    many = program("logits", epochs=200, teacher__cache_dir="off")
    many.plan(0)
    assert many.recall.cache.computed == 1152
    assert "up front" in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2])
def test_rows_do_not_depend_on_what_else_is_asked(program, monkeypatch, devices):
    """To the last bit: what a run that goes on computes anew is what the one that was stopped had."""
    monkeypatch.setattr(recall, "views_at_once", lambda _: 96)
    size, rng = 64 * 18, np.random.default_rng(0)
    one, other = (program("gradients", devices=devices, teacher__cache_dir="off") for _ in range(2))
    one.recall.cache.fill_all()
    for ids in np.split(rng.permutation(size), np.sort(rng.integers(0, size, 5))):
        other.recall.cache.fill(ids)
    first, second = (made.recall.cache.lookup(np.arange(size), made.replicated) for made in (one, other))
    assert sorted(first) == ["ce@input", "embedding", "logits"]
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, second[name])


def test_one_cache_serves_all_seeds(program):
    """Each student's rows are those of its own views."""
    together = program("logits", devices=2, seeds=(3, 11))
    plan = together.plan(0)
    assert plan.teacher["logits"].shape == (2, 4, 16, 4)
    for place, seed in enumerate((3, 11)):
        alone = program("logits", seed=seed).plan(0)
        np.testing.assert_array_equal(plan.index[place], alone.index)
        np.testing.assert_allclose(
            np.asarray(plan.teacher["logits"][place], np.float32),
            np.asarray(alone.teacher["logits"], np.float32),
            rtol=2e-3,
            atol=1e-3,
        )
    state, frozen = together.initial()
    fixed = together.fixed(frozen)
    after = jax.block_until_ready(together.step_at(0, state, plan, fixed)(state, plan, fixed))
    assert np.isfinite(after.metrics.loss).all()
