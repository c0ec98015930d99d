"""The two pairs of configs/imagenet.py take a step, on made JPEGs of 32 pixels."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_case

from gkd_jax import command, models
from gkd_jax.training import experiment
from gkd_jax.training.finished import Finished
from gkd_jax.training.program import Job, Program
from gkd_jax.training.resolve import resolve
from gkd_jax.training.teacher import Teacher

pytestmark = pytest.mark.slow
pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")

FILE = pathlib.Path(__file__).parents[2] / "configs" / "imagenet.py"
GIVEN = ("data.source=tfds:tiny", "data.image_size=32", "data.workers=0", "batch_size=4", "epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("sets")
    tfds_case.write(parent, "tiny", {"train": tfds_case.photographs(5), "validation": tfds_case.photographs(3, 1)})
    return parent


def untrained(name, dataset):
    """Returns a network as the teacher of a run, with the variables that it begins with."""
    model = models.create(name, num_classes=dataset.num_classes)
    build = lambda key: model.init(key, jnp.zeros((1, *dataset.image_shape)))
    variables = jax.jit(build)(jax.random.key(1, impl="rbg"))
    kernel, bias = model.classifier(variables)
    known = Finished({}, dataset.class_names, dataset.image_shape, dataset.mean, dataset.std, model, variables, 0, {})
    return Teacher(*model.fold(variables), kernel, bias, known)


@pytest.mark.parametrize(
    "pair", ["resnet34,resnet18", pytest.param("resnet50,mobilenetv1", marks=pytest.mark.exhaustive)]
)
def test_a_pair_takes_a_step(folder, tmp_path, pair):
    fields = [f"--config.{field}" for field in (*GIVEN, "teacher.batch_size=4", f"data.data_dir={folder}")]
    given = resolve(command.parse(["gkd_jax", f"--config={FILE}:{pair}", *fields]).config)
    dataset = experiment.load_data(given)
    experiment.check_against(given, dataset)
    master = untrained(given["teacher"]["model"], dataset)
    program = Program(Job("student", given, tmp_path, dataset, master), devices=jax.devices()[:1])
    state, frozen = program.initial()
    before, fixed, plan = jax.device_get(state.params), program.fixed(frozen), program.plan(0)
    try:
        after = program.step_at(0, state, plan, fixed)(state, program.at(plan, 0), fixed)
    finally:
        program.batches.close()
    assert (int(after.step), program.job.total_steps) == (1, 1)
    assert int(after.first_nonfinite[0]) == -1
    values = {name: float(line.value) for name, line in after.metrics.lines.items()}
    assert set(values) == {"ce", "kd"}
    # Half of each; Gompertz has the weight exp(-exp(10 * 0.3)) at the first step
    expected = 0.5 * values["ce"] + 0.5 * np.exp(-np.exp(3.0)) * values["kd"]
    np.testing.assert_allclose(float(after.metrics.loss), expected, rtol=1e-5)
    assert 0.1 < values["ce"] < 10
    assert values["kd"] > 1e-3
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), before, jax.device_get(after.params))
    assert not any(jax.tree.leaves(same))
