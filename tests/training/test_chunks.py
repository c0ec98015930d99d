"""Several steps in one program."""

import jax
import numpy as np
import pytest

from gkd_jax.training import chunks
from gkd_jax.training.program import Program


@pytest.mark.parametrize(
    ("steps", "period", "limit", "expected"),
    [
        (781, 1, 128, 71),  # CIFAR in batches of 64: eleven chunks, nothing left
        (97, 1, 128, 97),  # the whole epoch
        (391, 1, 128, 97),  # 17 · 23: by its divisors 17 calls, so four of 97 and three steps
        (391, 4, 128, 96),  # at least 97 macro-steps wherever they lie; four of 24, with few steps left
        (10, 1, 1, 1),
        (3, 2, 128, 1),  # not even two macro-steps for sure
        (100, 60, 50, 1),
    ],
)
def test_length_leaves_little_over(steps, period, limit, expected):
    assert chunks.length(steps, period, limit) == expected


@pytest.mark.parametrize(("per_epoch", "period", "limit"), [(7, 2, 4), (12, 3, 6), (9, 1, 4), (10, 4, 8), (5, 1, 1)])
def test_every_step_is_done_once_and_chunks_are_anchored_to_the_run(per_epoch, period, limit):
    chunk = chunks.length(per_epoch, period, limit)
    for epoch in range(6):
        step, end = epoch * per_epoch, (epoch + 1) * per_epoch
        while step < end:
            if chunks.begins(step, per_epoch, period, chunk):
                assert step % period == 0
                step += chunk
            else:
                step += 1
        assert step == end


def test_chunks_equal_steps(make_job, begin):
    """With a line at every second step and one at every third, over 32 steps that chunks of 12 do not divide."""
    terms = {
        "kd": {"weight": 1.0, "every": 2},
        "gradient": {"weight": 1.0, "wrt": "classifier", "every": 3},
    }

    def run(**fields):
        # Small steps, so that what the two programs round differently is not amplified from step to step
        small = {"batch_size": 2, "epochs": 2, "optimizer__learning_rate": 0.01}
        job = make_job({k: dict(v) for k, v in terms.items()}, student__model="speck", **small, **fields)
        program = Program(job, devices=jax.devices()[:1])
        state, _, fixed = begin(program)
        step, calls = 0, []
        while step < job.total_steps:
            if step % job.steps_per_epoch == 0:
                plan = program.plan(step // job.steps_per_epoch)
            count = program.call_at(step)
            state = program.step_at(step, state, plan, fixed, count)(state, plan, fixed)
            calls.append(count)
            step += count
        return jax.device_get(state), calls

    by_step, ones = run()
    by_chunk, calls = run(steps_per_call=12)
    assert set(ones) == {1}
    assert 12 in calls
    assert 1 in calls
    for a, b in zip(jax.tree.leaves(by_step.replace(key=0)), jax.tree.leaves(by_chunk.replace(key=0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_equal_variants_are_compiled_once(make_job, begin):
    """A line at every sixth step: a step with it, and a loop of five without; the student's convolution stands there
    twice, with its two gradients, and not six times."""
    terms = {"kd": {"weight": 1.0, "every": 6}}
    job = make_job(terms, batch_size=2, student__model="speck", steps_per_call=12)
    program = Program(job, devices=jax.devices()[:1])
    state, plan, fixed = begin(program)
    count = program.call_at(0)
    assert count == 12
    text = program.jitted_step_at(0, count).lower(state, plan, fixed).as_text()
    assert text.count("stablehlo.while") == 2


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_chunk_lowers_for_an_absent_platform(make_job, begin, platform):
    """In the compute type and the chunks that "auto" is there: three macro-steps of an epoch of eight steps."""
    terms = {"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "every": 2}}
    program = Program(make_job(terms, dtype="bfloat16", batch_size=8), devices=jax.devices()[:1], platform=platform)
    state, plan, fixed = begin(program)
    assert program.call_at(0) == 6
    text = program.jitted_step_at(0, 6).trace(state, plan, fixed).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    assert "bf16" in text
