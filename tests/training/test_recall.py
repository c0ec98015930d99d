"""A remembered teacher says what the teacher says, and is asked once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.losses import term
from gkd_jax.objective import Line
from gkd_jax.outputs import Gradient
from gkd_jax.schedules import Weight
from gkd_jax.training import recall
from gkd_jax.training.program import Program

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


@pytest.mark.parametrize("level", TERMS)
@pytest.mark.parametrize(("devices", "memory"), [(1, 0), (1, 1), (2, 1)], ids=["host", "device", "two devices"])
def test_losses_are_those_of_a_teacher_that_is_asked_at_every_step(program, level, devices, memory):
    online, _, _ = run(program(level, "none", devices))
    remembering = program(level, devices=devices, teacher__cache_memory=memory)
    cached, plan, fixed = run(remembering)
    assert remembering.recall.cache.tier == ("device" if memory else "host")
    assert plan.teacher["logits"].dtype == jnp.float16
    assert fixed.teacher == {}  # the network is no argument of the step any more
    for name in ("ce", *TERMS[level]):
        ours, expected = (float(s.metrics.lines[name].value) for s in (cached, online))
        # float16 has eleven bits: 2^-11 is 5e-4 of each entry, and four steps carry it on
        assert ours == pytest.approx(expected, rel=2e-3, abs=1e-4), name
    assert float(cached.metrics.loss) == pytest.approx(float(online.metrics.loss), rel=5e-4)
    # The first step, too, is not the same to the last bit: it was looked up
    assert float(cached.metrics.loss) != float(online.metrics.loss)


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


@pytest.mark.parametrize("change", ["weights", "images", "normalisation", "views", "type"])
def test_what_was_kept_of_something_else_is_not_used(program, change, monkeypatch):
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
            "views": {"flip": False},
        }[change]
        job = type(job)(**{**_fields(job), "dataset": type(dataset)(**{**_fields(dataset), **changed})})
    assert Program(job, devices=jax.devices()[:1]).recall.cache.from_disk == 0


def _fields(record):
    return {name: getattr(record, name) for name, field in record.__dataclass_fields__.items() if field.init}


@pytest.mark.parametrize(
    ("level", "cache", "missing"),
    [
        ("embedding", "logits", "the objective needs teacher.embedding, which it does not hold"),
        ("gradients", "embedding", "the objective needs the gradient ce@input, which it does not hold"),
        ("gradients", "logits", "the objective needs teacher.embedding and the gradient ce@input"),
    ],
)
def test_an_objective_that_needs_more_says_so_and_has_the_teacher_online(program, capsys, level, cache, missing):
    online = program(level, cache)
    assert online.recall is None
    said = capsys.readouterr().err
    assert f"teacher.cache = {cache!r} is of no use here" in said
    assert missing in said.replace(" the teacher embedding", "")
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
    assert program("logits").recall is None
    assert re.search(
        r"teacher.cache = 'logits' is of no use here, .*1,152 rows of logits take 9,216 bytes", capsys.readouterr().err
    )


def test_few_epochs_fill_as_they_go_and_many_up_front(program, capsys, monkeypatch):
    """18 views of 64 images in batches of 16: an epoch needs 64 of 1,152."""
    monkeypatch.setattr(recall, "_BATCH", 16)
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
