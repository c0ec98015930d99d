"""Variables that are not trained: kept once beside the checkpoints, and found again."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import models
from gkd_jax.errors import UserError
from gkd_jax.models.adapter import linen
from gkd_jax.outputs import Model
from gkd_jax.training import finished, frozen
from gkd_jax.training.checkpoint import Checkpoints
from gkd_jax.training.loop import train
from gkd_jax.training.stop import Interrupted
from gkd_jax.training.workdir import claim

SEEDS = (3, 11)


@pytest.fixture(scope="module", autouse=True)
def _tinted(_registrations):
    """A network whose images are first tinted, each channel by a factor that is drawn once and never trained."""

    @models.register("tinted")
    def build(num_classes, dtype, conv):
        inner = linen(helpers.Speck(num_classes, 6, models.Compute(dtype, conv)))

        def init(key, images):
            tint = jax.random.uniform(jax.random.fold_in(key, 9), (images.shape[-1],), minval=0.5, maxval=2.0)
            return {**inner.init(key, images), "frozen": {"tint": tint}}

        def apply(variables, images, **more):
            return inner.apply(variables, images * variables["frozen"]["tint"][None, None, None], **more)

        return Model(init, apply, inner.classifier)


@pytest.fixture
def job(make_job):
    """Returns a function that makes a job in a directory that is claimed."""

    def make(name, **fields):
        made = make_job({}, taught=False, student__model="tinted", epochs=1, **fields)
        made = dataclasses.replace(made, workdir=made.workdir.with_name(name))
        claim(made.workdir, made.config, made.dataset)
        return made

    return make


@pytest.mark.parametrize("seeds", [(), SEEDS], ids=["one", "two"])
def test_they_are_loaded_with_the_rest(job, dataset, seeds):
    done = job("run", seeds=seeds, ema=0.9)
    trained = train(done)
    found = finished.load_seeds(done.workdir)
    assert tuple(found) == (seeds or (0,))
    for place, (seed, network) in enumerate(found.items()):
        tint = np.asarray(trained.frozen["frozen"]["tint"])
        assert tint.shape == ((len(seeds), 3) if seeds else (3,))
        np.testing.assert_array_equal(network.variables["frozen"]["tint"], tint[place] if seeds else tint)
        assert finished.load(done.workdir, seed=seed).predict(dataset.test_images).shape == (20, 4)
    if seeds:  # each has its own
        assert np.abs(tint[0] - tint[1]).max() > 0.01


def test_a_run_goes_on_with_those_that_it_began_with(job, monkeypatch):
    straight = train(job("straight"))
    stopped = job("stopped")
    with pytest.raises(Interrupted):
        train(stopped, helpers.StopAt(1))
    kept = helpers.contents(stopped.workdir / frozen.FOLDER)
    assert kept
    # Whatever would be drawn now
    uniform = jax.random.uniform
    monkeypatch.setattr(jax.random, "uniform", lambda *args, **more: uniform(*args, **more) + ("minval" in more))
    ended = train(stopped)
    np.testing.assert_array_equal(ended.frozen["frozen"]["tint"], straight.frozen["frozen"]["tint"])
    for a, b in zip(jax.tree.leaves(ended.state.params), jax.tree.leaves(straight.state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert helpers.contents(stopped.workdir / frozen.FOLDER) == kept


def test_a_network_without_any_leaves_no_folder(make_job):
    made = make_job({}, taught=False, student__model="speck", epochs=1)
    claim(made.workdir, made.config, made.dataset)
    train(made)
    assert not (made.workdir / frozen.FOLDER).exists()
    assert "frozen" not in finished.load(made.workdir).variables


DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
TREE = {"frozen": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
SHAPES = jax.eval_shape(lambda: TREE)


def test_kept_once(tmp_path):
    assert frozen.keep(tmp_path, TREE) is TREE
    before = helpers.contents(tmp_path)
    again = frozen.keep(tmp_path, jax.tree.map(lambda x: x + 1, TREE))
    for found in (again, frozen.read(tmp_path, SHAPES, DEVICE)):
        assert set(found) == {"frozen"}
        np.testing.assert_array_equal(found["frozen"]["kernel"], TREE["frozen"]["kernel"])
    assert helpers.contents(tmp_path) == before
    nothing = tmp_path / "nothing"
    assert frozen.keep(nothing, {}) == {}
    assert frozen.read(nothing, {}, DEVICE) == {}
    assert not nothing.exists()


def test_those_that_are_not_what_was_written(tmp_path):
    with pytest.raises(UserError, match="frozen: no checkpoint here"):
        frozen.read(tmp_path, SHAPES, DEVICE)
    frozen.keep(tmp_path, TREE)
    with pytest.raises(UserError, match="kernel is .* of another architecture"):
        frozen.read(tmp_path, {"frozen": {"kernel": jax.ShapeDtypeStruct((2, 4), jnp.float32)}}, DEVICE)
    with pytest.raises(UserError, match="frozen/bias is not there"):
        frozen.read(tmp_path, {"frozen": {**SHAPES["frozen"], "bias": SHAPES["frozen"]["kernel"]}}, DEVICE)
    # Another kernel under the hash of the first
    store = Checkpoints(tmp_path / frozen.FOLDER)
    store.save(0, {**jax.tree.map(lambda x: x + 1, TREE), "sha256": frozen._digest(TREE)})
    store.close()
    with pytest.raises(UserError, match="damaged: it is not what was written"):
        frozen.read(tmp_path, SHAPES, DEVICE)
    # And files that were cut short
    for file in (tmp_path / frozen.FOLDER).rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UserError, match="damaged, cut short"):
        frozen.read(tmp_path, SHAPES, DEVICE)
