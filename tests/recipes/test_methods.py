"""Every method learns, and goes on as if it had not been stopped."""

import helpers
import jax
import numpy as np
import pytest

from gkd_jax import recipes
from gkd_jax.training import experiment, teacher
from gkd_jax.training.experiment import load_data
from gkd_jax.training.program import Job, Program
from gkd_jax.training.stop import Interrupted

METHODS = sorted(recipes.names())
# One of each family: these are tried at every change, the others by `make test-all`
SOME = ("crd", "dkd", "gompertz_cnn", "mlkd", "reviewkd", "simkd")
ALL = [pytest.param(name, marks=[] if name in SOME else [pytest.mark.exhaustive]) for name in METHODS]


def _constant(resolved):
    """The configuration with weights that do not rise: else a loss would, however well it is learnt."""
    terms = {
        label: {**line, "schedule": {"name": "constant", "value": 1.0}}
        for label, line in resolved["objective"]["terms"].items()
    }
    return {**resolved, "objective": {**resolved["objective"], "terms": terms}}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_its_loss_falls_in_ten_steps(resolved, tmp_path, method):
    """Five epochs of two steps over the same images."""
    given = _constant(resolved(method))
    dataset, checkpoint = load_data(given), given["teacher"]["checkpoint"]
    taught = teacher.prepare(checkpoint, given["teacher"]["model"], dataset, given["dtype"]) if checkpoint else None
    program = Program(Job("student", given, tmp_path, dataset, taught), devices=jax.devices()[:1])
    state, frozen = program.initial()
    fixed, losses = program.fixed(frozen), []
    for epoch in range(5):
        plan = program.plan(epoch)
        for step in (2 * epoch, 2 * epoch + 1):
            state = program.step_at(step, state, plan, fixed)(state, plan, fixed)
        losses.append(float(state.metrics.loss) / 2)
    assert np.all(np.isfinite(losses)), losses
    assert int(state.step) == 10
    assert losses[-1] < losses[0], losses


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(resolved, tmp_path, method):
    given = resolved(method)
    expected = experiment.run(given, tmp_path / "straight")
    with pytest.raises(Interrupted) as caught:
        experiment.run(given, tmp_path / "stopped", helpers.StopAt(5))
    assert 0 < caught.value.step < 10
    found = experiment.run(given, tmp_path / "stopped")
    assert found["student"]["params_sha256"] == expected["student"]["params_sha256"]
    assert found["student"]["test_accuracy"] == expected["student"]["test_accuracy"]
