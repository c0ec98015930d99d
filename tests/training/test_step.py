"""One step against the same step written out by hand, on one device and on two."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd_jax.training.program import Program
from gkd_jax.training.step import Plan


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_step_equals_one_written_out_by_hand(make_job, begin, dataset, teacher):
    job = make_job(
        {"kd": {"weight": 0.7, "temperature": 3.0}},
        optimizer__nesterov=True,
        optimizer__weight_decay=0.01,
        optimizer__learning_rate=0.1,
    )
    program = Program(job, devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    params, statistics = jax.device_get((state.params, state.batch_stats))

    # The batch, cropped and mirrored by NumPy
    index, view = np.asarray(plan.index[0]), np.asarray(plan.view[0])
    padded = np.pad(dataset.train_images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    images = []
    for i, v in zip(index, view, strict=True):
        corner, mirror = divmod(v, 2)
        dy, dx = divmod(corner, 3)
        crop = padded[i, dy : dy + 8, dx : dx + 8]
        images.append(crop[:, ::-1] if mirror else crop)
    x = jnp.asarray((np.stack(images) / 255.0 - dataset.mean) / dataset.std, jnp.float32)
    y = dataset.train_labels[index]
    z_teacher = np.asarray(teacher.model.apply(teacher.variables, x, train=False)[0].logits)

    def loss(params):
        outputs, new = program.networks.student.apply({"params": params, "batch_stats": statistics}, x, train=True)
        z = outputs.logits
        ce = -jax.nn.log_softmax(z)[jnp.arange(len(y)), y]
        p = softmax(z_teacher / 3.0)
        kl = (p * (np.log(p) - jax.nn.log_softmax(z / 3.0))).sum(-1)
        return (ce + 0.7 * 9.0 * kl).mean(), new

    (value, new_statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)

    after = program.step_at(0, state, plan, fixed)(state, plan, fixed)

    # PyTorch's SGD: g + wd p; buffer = m buffer + g; Nesterov moves by g + m buffer. The first buffer is g.
    def moved(p, g):
        g = g + 0.01 * p
        return p - 0.1 * (g + 0.9 * g)

    expected = jax.tree.map(moved, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), after.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.batch_stats, new_statistics)
    assert int(after.step) == 1
    np.testing.assert_allclose(after.metrics.loss, value, rtol=1e-5)
    assert float(after.metrics.examples) == 16


ALL_TERMS = {
    "kd": {"weight": 1.0},
    "wasserstein": {"weight": 1.0, "solver": "unrolled"},
    "gradient": {"weight": 1.0},
}


# Both kinds of transport with OTT's solver, through a learned projection: the widths of speck and resnet8 differ
BY_OTT = {
    "kd": {"weight": 1.0},
    "wasserstein": {"weight": 1.0, "solver": "ott"},
    "logit": {"term": "wasserstein", "weight": 1.0, "kind": "logit", "solver": "ott"},
}


@pytest.mark.parametrize(
    ("terms", "fields"),
    [(ALL_TERMS, {}), (BY_OTT, {"ema": 0.9, "student__model": "speck"})],
    ids=["unrolled", "ott"],
)
def test_two_devices_do_what_one_does(make_job, begin, terms, fields):
    """BatchNorm's statistics, the transport between all pairs of the batch, and the means are those of the batch."""
    job = make_job({k: dict(v) for k, v in terms.items()}, **fields)
    after = []
    for count in (1, 2):
        program = Program(job, devices=jax.devices()[:count])
        assert len(program.devices) == count
        state, plan, fixed = begin(program)
        assert len(plan.index.sharding.device_set) == count
        after.append(jax.device_get(program.step_at(0, state, plan, fixed)(state, plan, fixed)))
    one, two = after
    np.testing.assert_allclose(two.metrics.loss, one.metrics.loss, rtol=1e-5)
    for name in terms:
        np.testing.assert_allclose(two.metrics.lines[name].value, one.metrics.lines[name].value, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(one.trained), jax.tree.leaves(two.trained), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    others = [jax.tree.leaves((state.batch_stats, state.ema, state.terms)) for state in (one, two)]
    assert len(others[0]) > len(jax.tree.leaves(one.batch_stats))
    for a, b in zip(*others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_nothing_is_traced_again_after_the_first_step(make_job, begin):
    program = Program(make_job(), devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    step = program.jitted_step_at(0)
    state = step(state, plan, fixed)
    state = step(state, program.plan(1), fixed)
    state = step(state, plan, fixed)
    assert step._cache_size() == 1


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_step_lowers_for_an_absent_platform(make_job, begin, platform):
    """In the compute type that "auto" is there."""
    job = make_job({k: dict(v) for k, v in ALL_TERMS.items()}, dtype="bfloat16")
    program = Program(job, devices=jax.devices()[:1], platform=platform)
    state, plan, fixed = begin(program)
    text = program.jitted_step_at(0).trace(state, plan, fixed).lower(lowering_platforms=(platform,)).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*", text)
    kernels = [re.search(r"tensor<(\d+)x(\d+)x\d+x\d+x(f32|bf16)>\) ->", line) for line in convolutions]
    assert len(convolutions) > 20
    assert all(kernels)
    assert "bf16" in {m.group(3) for m in kernels}
    # The shortcuts' 1x1 convolutions are matrix products; whatever is a convolution is a 3x3 or one of its gradients
    assert not [m.group() for m in kernels if m.group(1) == m.group(2) == "1"]
    assert "stablehlo.dot_general" in text


def test_every_is_a_step_of_its_own_with_its_multiple_of_the_weight(make_job, begin):
    def after(every, step):
        program = Program(make_job({"kd": {"weight": 0.5, "every": every}}), devices=jax.devices()[:1])
        state, plan, fixed = begin(program)
        for i in range(step + 1):
            state = program.step_at(i, state, plan, fixed)(state, plan, fixed)
        return jax.device_get(state)

    always, second = after(1, 0), after(2, 0)
    ce, kd = (float(always.metrics.lines[name].value) for name in ("ce", "kd"))
    np.testing.assert_allclose(always.metrics.loss, ce + 0.5 * kd, rtol=1e-5)
    np.testing.assert_allclose(second.metrics.loss, ce + 2 * 0.5 * kd, rtol=1e-5)

    both = after(2, 1)  # the second step leaves it out
    assert float(both.metrics.lines["kd"].count) == 1
    assert float(both.metrics.lines["ce"].count) == 2
    np.testing.assert_allclose(both.metrics.lines["kd"].value, kd, rtol=1e-5)


def test_average_of_parameters_follows_its_definition(make_job, begin):
    program = Program(make_job(ema=0.9), devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    average = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    for step in range(2):
        state = program.step_at(step, state, plan, fixed)(state, plan, fixed)
        decay = min(0.9, (1 + step) / (10 + step))
        new = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        average = jax.tree.map(lambda old, now, d=decay: d * old + (1 - d) * now, average, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, average)


def test_first_value_that_is_not_finite_is_remembered(make_job, begin):
    program = Program(make_job(optimizer__learning_rate=1e30), devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    for step in range(4):
        state = program.step_at(step, state, plan, fixed)(state, plan, fixed)
    first, place = (int(v) for v in state.first_nonfinite)
    assert first in (1, 2)  # the first step itself is sound
    assert place in (0, 1, 2)
    again = program.step_at(4, state, plan, fixed)(state, plan, fixed)
    assert [int(v) for v in again.first_nonfinite] == [first, place]


def test_bfloat16_computes_and_float32_keeps(make_job, begin):
    losses = []
    for dtype in ("float32", "bfloat16"):
        program = Program(make_job(dtype=dtype), devices=jax.devices()[:1])
        state, plan, fixed = begin(program)
        state = program.step_at(0, state, plan, fixed)(state, plan, fixed)
        kept = jax.tree.leaves((state.params, state.batch_stats, state.opt, state.metrics))
        assert {leaf.dtype for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype("float32")}
        losses.append(float(state.metrics.loss))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)
    outputs, _ = program.networks.student.apply(
        {"params": state.params, "batch_stats": state.batch_stats}, jnp.zeros((2, 8, 8, 3)), train=False
    )
    assert outputs.features[1].dtype == jnp.bfloat16


def test_sums_begin_anew_with_an_epoch(make_job, begin):
    program = Program(make_job({}, taught=False), devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    per_epoch = program.job.steps_per_epoch
    for step in range(per_epoch + 1):
        state = program.step_at(step, state, plan, fixed)(state, plan, fixed)
    assert float(state.metrics.steps) == 1
    assert np.isfinite(state.history[0])
    assert float(state.history[1]) == float(state.metrics.correct) / 16


def test_state_begins_without_shared_buffers(make_job, begin):
    program = Program(make_job(ema=0.9), devices=jax.devices()[:1])
    state, _, _ = begin(program)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema, state.opt))]
    assert len(buffers) == len(set(buffers))
    assert isinstance(Plan(*program.plan(0)), Plan)
    assert optax.tree.norm(state.params) > 0


def test_the_state_and_nothing_else_is_donated(make_job, begin):
    """Else every step holds the state twice; but the plan and the teacher are read by the next one too."""
    program = Program(make_job(student__model="speck", ema=0.9), devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    text = program.jitted_step_at(0).lower(state, plan, fixed).as_text()
    donated = text.count("jax.buffer_donor") + text.count("tf.aliasing_output")
    assert donated == len(jax.tree.leaves(state)) > len(jax.tree.leaves((state.params, state.opt, state.ema)))
