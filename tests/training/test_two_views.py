"""Two views of the images: who sees which, what is drawn for them, and what is computed for each."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import data, objective
from gkd_jax.losses import term
from gkd_jax.objective import Line
from gkd_jax.outputs import Gradient
from gkd_jax.schedules import Weight
from gkd_jax.training import members, recall, step, views
from gkd_jax.training.loop import train
from gkd_jax.training.program import Program
from gkd_jax.training.stop import Interrupted

TERMS = {"kd": {"weight": 1.0}, "far": {"term": "kd", "weight": 0.5, "view": "strong", "temperature": 2.0}}
SEEDS = (3, 11)
STRONG = data.strong


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """The real augmentation takes seconds to compile, and has tests of its own."""

    def inverted(key, images):
        return jnp.where(jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1)), 255 - images, images)

    monkeypatch.setattr(data, "strong", inverted)


@pytest.fixture
def program(make_job):
    """Returns a function that makes the program of a small student with lines on both views."""

    def make(terms=TERMS, devices=1, **fields):
        fields = {"student__model": "speck", "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, **fields}
        return Program(make_job({k: dict(v) for k, v in terms.items()}, **fields), devices=jax.devices()[:devices])

    return make


def batches(program, steps=3):
    """The images of the first steps, made by the program's own function outside of any step."""
    plan, fixed = program.batches.plan(0), step.Fixed(*program.batches.images)
    make = jax.jit(program.batches.make())
    return [make(plan, fixed, jnp.int32(i)) for i in range(steps)]


def trained(program, steps=3):
    state, frozen = program.initial()
    plan, fixed = program.plan(0), program.fixed(frozen)
    for i in range(steps):
        state = jax.block_until_ready(program.step_at(i, state, plan, fixed)(state, plan, fixed))
    return jax.device_get(state)


def test_a_line_on_another_view_sees_other_images_of_the_same_examples(program, dataset, monkeypatch):
    monkeypatch.setattr(data, "strong", lambda key, images: images)
    made = program()
    seen = jax.device_get(batches(made))
    for batch in seen:
        crops = (batch.images["strong"] * dataset.std + dataset.mean) * 255
        padded = np.pad(dataset.train_images[batch.index], ((0, 0), (1, 1), (1, 1), (0, 0)))
        for image, crop in zip(padded, crops, strict=True):
            corners = [image[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
            every = np.stack([*corners, *(corner[:, ::-1] for corner in corners)])
            assert np.abs(every - crop).max((1, 2, 3)).min() < 1e-3
        # Crops of their own, as published
        different = np.abs(batch.images["strong"] - batch.images["weak"]).max((1, 2, 3)) > 0
        assert 0.7 < different.mean() <= 1
    assert not np.array_equal(seen[0].images["strong"], seen[1].images["strong"])


def test_no_line_no_view(program):
    made = program({"kd": {"weight": 1.0}})
    assert made.batches.plan(0).key is None
    assert set(batches(made, 1)[0].images) == {"weak"}


def test_a_step_with_two_views_written_out_by_hand(program, teacher):
    made = program()
    (batch,) = batches(made, 1)
    state, frozen = made.initial()
    params, statistics = jax.device_get((state.params, state.batch_stats))
    apply, labels = made.networks.student.apply, np.asarray(batch.labels)

    def kd(z, images, temperature):
        taught = teacher.model.apply(teacher.variables, images, train=False)[0].logits
        p, q = (jax.nn.log_softmax(x / temperature) for x in (taught, z))
        return temperature**2 * jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))

    @jax.jit
    def loss(params):
        # The statistics take in both views, the weak one first
        weak, once = apply({"params": params, "batch_stats": statistics}, batch.images["weak"], train=True)
        strong, twice = apply({"params": params, "batch_stats": once}, batch.images["strong"], train=True)
        ce = -jnp.mean(jax.nn.log_softmax(weak.logits)[jnp.arange(len(labels)), labels])
        near, far = kd(weak.logits, batch.images["weak"], 4.0), kd(strong.logits, batch.images["strong"], 2.0)
        return ce + near + 0.5 * far, (twice, weak.logits, far)

    (value, (after, logits, far)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    stepped = trained(made, 1)
    np.testing.assert_allclose(stepped.metrics.loss, value, rtol=1e-5)
    np.testing.assert_allclose(stepped.metrics.lines["far"].value, far, rtol=1e-5)
    assert int(stepped.metrics.correct) == np.sum(np.argmax(logits, -1) == labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), stepped.batch_stats, after)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stepped.params, expected)


def test_two_devices_see_what_one_sees(program):
    one, two = (batches(program(devices=count), 1)[0] for count in (1, 2))
    for view in objective.VIEWS:
        np.testing.assert_array_equal(one.images[view], two.images[view])


def test_a_program_that_starts_later_sees_the_same(program):
    """What is drawn depends on the step and the seed, not on what came before."""
    first, again, other = program(), program(), program(seed=5)
    make, plan = jax.jit(again.batches.make()), again.batches.plan(0)
    fixed = step.Fixed(*again.batches.images)
    seen = batches(first)
    np.testing.assert_array_equal(make(plan, fixed, jnp.int32(2)).images["strong"], seen[2].images["strong"])
    assert not np.array_equal(batches(other, 1)[0].images["strong"], seen[0].images["strong"])
    # The same row of the next epoch's plan is another draw
    later = make(plan, fixed, jnp.int32(2 + again.job.steps_per_epoch))
    np.testing.assert_array_equal(later.images["weak"], seen[2].images["weak"])
    assert not np.array_equal(later.images["strong"], seen[2].images["strong"])


def test_a_run_that_was_stopped_ends_as_one_that_was_not(program, tmp_path):
    def job(name):
        (tmp_path / name).mkdir()
        return dataclasses.replace(program().job, workdir=tmp_path / name)

    expected, stopped = train(job("straight")), job("stopped")
    with pytest.raises(Interrupted):
        train(stopped, helpers.StopAt(2))
    ended = train(stopped)
    for a, b in zip(*(jax.tree.leaves(x.state.replace(key=())) for x in (ended, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_real_augmentation_on_one_device_and_on_two(program, monkeypatch):
    monkeypatch.setattr(data, "strong", STRONG)
    one, two = (batches(program(devices=count), 1)[0].images["strong"] for count in (1, 2))
    np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(data, "strong", lambda key, images: images)
    assert np.mean(np.asarray(batches(program(), 1)[0].images["strong"]) != np.asarray(one)) > 0.3


@pytest.mark.parametrize(("platform", "strategy", "devices"), [("tpu", "shard", 2), ("cuda", "vmap", 1)])
def test_it_lowers_for_an_absent_platform(program, begin, monkeypatch, platform, strategy, devices):
    helpers.skip_if_not_vmapped(strategy)
    monkeypatch.setattr(data, "strong", STRONG)
    made = program(seeds=SEEDS, seed_strategy=strategy, devices=devices)
    state, plan, fixed = begin(made)
    text = made.jitted_step_at(0).trace(state, plan, fixed).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text  # the loop over the operations


@pytest.mark.parametrize(("strategy", "devices", "shared"), [("vmap", 1, False), ("shard", 2, True)])
def test_every_seed_is_what_it_would_be_alone(program, strategy, devices, shared):
    helpers.skip_if_not_vmapped(strategy)
    fields = {"seeds": SEEDS, "seed_strategy": strategy, "seeds_share_batches": shared}
    together = trained(program(devices=devices, **fields))
    for place, seed in enumerate(SEEDS):
        alone = trained(program(seed=seed, **({"batch_seed": SEEDS[0]} if shared else {})))
        mine = members.one_state(together, place)
        for part in ("params", "batch_stats", "metrics"):
            for a, b in zip(*(jax.tree.leaves(getattr(s, part)) for s in (mine, alone)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- what is computed


def test_gradients_are_computed_on_the_views_whose_lines_need_them(program, monkeypatch):
    asked = []
    original = step.forward

    def spied(model, variables, images, wanted=(), **more):
        asked.append((more["train"], [gradient.name for gradient in wanted]))
        return original(model, variables, images, wanted, **more)

    monkeypatch.setattr(step, "forward", spied)
    made = program({"gradient": {"weight": 1.0}, "far": dict(TERMS["far"])})
    state, frozen = made.initial()
    made.jitted_step_at(0).trace(state, made.plan(0), made.fixed(frozen))
    # The teacher on both views, then the student
    assert asked == [(False, ["ce@input"]), (False, []), (True, ["ce@input"]), (True, [])]


def test_a_view_on_which_nothing_is_compared_asks_the_teacher_nothing(program, monkeypatch):
    asked = []
    original = step.forward
    monkeypatch.setattr(step, "forward", lambda *args, **more: asked.append(more["train"]) or original(*args, **more))
    made = program({"far": dict(TERMS["far"])})  # cross-entropy alone on the view "weak"
    state, frozen = made.initial()
    made.jitted_step_at(0).trace(state, made.plan(0), made.fixed(frozen))
    assert asked == [False, True, True]


def test_networks_draw_differently_on_the_two_views():
    key = jax.random.key(0)
    assert views.key_of(key, "weak") is key
    assert not np.array_equal(*(jax.random.key_data(views.key_of(key, view)) for view in objective.VIEWS))


# ------------------------------------------------------------------------------------------- a teacher remembered


@pytest.mark.usefixtures("in_large_batches")
def test_beside_a_cache_the_teacher_is_asked_about_the_strong_view(program, capsys):
    online = trained(program())
    remembering = program(teacher__cache="logits", teacher__cache_dir="off")
    cached = trained(remembering)
    assert remembering.recall.how
    assert set(remembering.plan(0).teacher) == {"logits"}
    assert "of no use" not in capsys.readouterr().err
    # To float16's rounding that of the weak view, and of the strong one what it was, but for how far the student went
    for name in ("ce", "kd", "far"):
        ours, expected = (float(s.metrics.lines[name].value) for s in (cached, online))
        assert ours == pytest.approx(expected, rel=2e-3), name
    # Without the network, the step knows what is remembered, and nothing of the other view
    state, frozen = remembering.initial()
    plan, fixed = remembering.plan(0), remembering.fixed(frozen)
    broken = fixed._replace(teacher=jax.tree.map(lambda x: x * jnp.nan, fixed.teacher))
    lines = jax.device_get(remembering.step_at(0, state, plan, fixed)(state, plan, broken).metrics.lines)
    assert np.isfinite(lines["kd"].value)
    assert np.isnan(lines["far"].value)


def line(view, *needs):
    weight = Weight((), lambda params, step: 1.0)
    return Line(term.Term("x", lambda *_: None, frozenset(needs)), weight, view=view)


def test_what_a_cache_need_not_hold():
    features, logits = "teacher.features", "teacher.logits"
    drawn = Gradient("random@input", "input", lambda logits, teacher, batch, key: logits)
    both = {"a": line("weak", logits), "b": line("strong", features, drawn)}
    assert recall.unheld("logits", both) == []
    assert recall.unheld("logits", {**both, "c": line("weak", features)}) == [features]
    ce = {"ce": line("weak")}
    assert recall.unheld("logits", {**ce, "b": line("strong", logits)}) == ["the teacher on the view 'strong' alone"]
    assert recall.unheld("logits", ce) == []


def test_a_cache_that_no_line_reads_is_not_filled(program):
    alone = program({"far": dict(TERMS["far"])}, teacher__cache="logits", teacher__cache_dir="off")
    assert alone.recall is None
    assert alone.plan(0).teacher == {}
