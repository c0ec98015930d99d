"""The work of a step, counted by XLA, in forward passes of the student: nothing is computed twice.

With plain convolutions, whose multiply-adds XLA counts as what they are, and a teacher that is looked up.
"""

import jax
import jax.numpy as jnp
import pytest

from gkd_jax.models import create
from gkd_jax.training.program import Program


def flops(lowered):
    return lowered.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("terms", "level", "most"),
    [
        ({"kd": {"weight": 1.0}}, "logits", 3.1),
        ({"kd": {"weight": 1.0}, "gradient": {"weight": 1.0}}, "gradients", 6.3),
        ({"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "wrt": "classifier"}}, "embedding", 3.1),
    ],
    ids=["kd", "input gradients", "classifier gradients"],
)
def test_a_step_costs_no_more_than_its_mathematics(make_job, monkeypatch, terms, level, most):
    monkeypatch.setattr("gkd_jax.models.conv_form", lambda platform: "plain")
    fields = {"student__model": "resnet20", "teacher__cache": level, "teacher__cache_dir": "off"}
    job = make_job({k: dict(v) for k, v in terms.items()}, **fields)
    program = Program(job, devices=jax.devices()[:1])
    state, frozen = program.initial()
    step = program.jitted_step_at(0).lower(state, program.plan(0), program.fixed(frozen))

    student = create("resnet20", num_classes=job.dataset.num_classes, conv="plain")
    images = jnp.zeros((job.config["batch_size"], *job.dataset.image_shape))
    variables = jax.eval_shape(student.init, jax.random.key(0), images)
    forward = jax.jit(lambda v, x: student.apply(v, x, train=True)[0].logits).lower(variables, images)
    assert flops(step) <= most * flops(forward)
    assert flops(step) > 0.9 * (most // 1) * flops(forward)  # and no less: all of it is there
