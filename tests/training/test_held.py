"""Images in the host's memory: the same run, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import records, same

from gkd_jax.training.held import HeldBatches
from gkd_jax.training.loop import train
from gkd_jax.training.program import Program


def held(job, name):
    config = {**job.config, "data": {**job.config["data"], "residency": "host"}}
    found = dataclasses.replace(job, config=config, workdir=job.workdir.with_name(name))
    found.workdir.mkdir(parents=True, exist_ok=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"teacher__cache": "logits", "teacher__cache_dir": "off"},
        {"seeds": [0, 1], "seed_strategy": "unroll"},
        {"seeds": [0, 1], "seeds_share_batches": True, "seed_strategy": "unroll"},
    ],
)
def test_a_run_with_images_on_the_host_is_that_with_images_on_the_device(make_job, fields, capsys):
    terms = {"kd": {"weight": 0.5}}
    job = make_job(terms, **fields)
    job.workdir.mkdir(parents=True, exist_ok=True)
    other = held(job, "held")
    whole, parts = train(job), train(other)
    # The batches are the same, and XLA joins the crop with what reads it: the rounding is another
    for a, b in zip(records(other), records(job), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        np.testing.assert_allclose(a["terms"]["kd"]["value"], b["terms"]["kd"]["value"], rtol=1e-3)
    assert parts.state.step == whole.state.step
    assert "images on the host: of the host's" in capsys.readouterr().err


def test_batches_are_those_of_the_device_bit_for_bit(make_job, begin):
    job = make_job({"kd": {"weight": 0.5}}, taught=True)
    ours, theirs = (Program(given) for given in (held(job, "held"), job))
    for program in (ours, theirs):
        assert isinstance(program.batches, HeldBatches) == (program is ours)
    (_, plan, fixed), (_, other, whole) = (begin(program) for program in (ours, theirs))
    for step in (0, 3):
        a = jax.jit(ours.batches.make())(ours.at(plan, step), fixed, jnp.int32(step))
        b = jax.jit(theirs.batches.make())(theirs.at(other, step), whole, jnp.int32(step))
        same(a, b)


def test_an_epochs_indices_are_fetched_once(make_job, begin, monkeypatch):
    """A row that was cut from them on the device would wait for all steps that were dispatched before."""
    job = make_job({"kd": {"weight": 0.5}}, taught=True)
    program = Program(held(job, "held"))
    _, plan, _ = begin(program)
    fetched = []
    monkeypatch.setattr("gkd_jax.training.held.fetch", lambda x: fetched.append(x) or np.asarray(x))
    for after in (plan, program.plan(1)):
        for step in range(job.steps_per_epoch):
            program.at(after, step)
    assert len(fetched) <= 2
