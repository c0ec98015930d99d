"""Stopping and coming back, records, checkpoints, and the teacher that nothing may change."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import config, losses
from gkd_jax.errors import UserError
from gkd_jax.losses.term import Term
from gkd_jax.outputs import Model, Outputs
from gkd_jax.schedules import Weight
from gkd_jax.training import finished, loop
from gkd_jax.training.checkpoint import Checkpoints, abstract_like, sha256
from gkd_jax.training.evaluate import Evaluator
from gkd_jax.training.loop import METRICS, train
from gkd_jax.training.program import Program
from gkd_jax.training.stop import Interrupted

TIMES = ("seconds", "seconds_cache", "seconds_compile", "images_per_second")


def records(job):
    lines = [json.loads(line) for line in (job.workdir / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def claimed(make_job):
    """Returns a function that makes a job whose directory is there."""

    def make(name, *args, **fields):
        job = make_job(*args, **fields)
        job = type(job)(job.name, job.config, job.workdir.with_name(name), job.dataset, job.teacher)
        job.workdir.mkdir(parents=True)
        return job

    return make


def test_a_run_that_was_stopped_ends_as_one_that_was_not(claimed):
    adaptive = config.schedule("gompertz_adaptive")
    terms = {"kd": {"weight": 1.0, "every": 2}, "wasserstein": {"weight": 1.0, "schedule": adaptive}}
    straight = claimed("straight", {k: dict(v) for k, v in terms.items()}, epochs=3, ema=0.9)
    expected = train(straight)

    stopped = claimed("stopped", {k: dict(v) for k, v in terms.items()}, epochs=3, ema=0.9)
    per_epoch = stopped.steps_per_epoch
    assert per_epoch == 4
    fitted = expected.state.weights["wasserstein"]
    assert float(fitted["reached"]) > 0
    assert float(fitted["inflection"]) != np.float32(0.3)
    # In the middle of the first epoch; then, where the epoch is over and its record must not be lost, at its end; then
    # in the second
    for polls, step in ((2, 3), (0, 4), (1, 6)):
        with pytest.raises(Interrupted) as caught:
            train(stopped, helpers.StopAt(polls))
        assert caught.value.step == step
        assert caught.value.signal == signal.SIGTERM
    ended = train(stopped)
    same(ended.state, expected.state)
    assert records(stopped) == records(straight)
    assert [record["epoch"] for record in records(stopped)] == [1, 2, 3]
    assert ended.records[-1]["step"] == 12


@pytest.mark.parametrize("cache", ["none", "logits"])
def test_filling_and_compilation_are_recorded_apart(claimed, tmp_path, cache):
    job = claimed(cache, epochs=2, teacher__cache=cache, teacher__cache_dir=str(tmp_path / "teachers"))
    trained = train(job)
    first, second = trained.records
    filled = 0.0 if trained.cache is None else trained.cache["seconds"]
    assert (filled > 0) == (cache == "logits")
    assert first["seconds_cache"] + second["seconds_cache"] == pytest.approx(filled)
    assert first["seconds_compile"] > second["seconds_compile"] >= 0
    for record in trained.records:
        assert record["seconds"] > record["seconds_cache"] + record["seconds_compile"]


def test_an_epoch_fetches_nothing_before_its_end(claimed, monkeypatch):
    """Not even a loss for the terminal: the device would stand idle until the host has seen it."""
    happened = []

    def noted(owner, name, letter):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: happened.append(letter) or function(*given))

    noted(loop.Reports, "step", "s")
    noted(jax, "device_get", "f")
    noted(type(jnp.zeros(())), "__float__", "f")
    train(claimed("watched", {}, taught=False, student__model="speck"))
    assert re.fullmatch("f*(s{4}f+){2}", "".join(happened))


def test_a_weight_with_parameters_is_refitted_to_the_accuracies_at_every_epochs_end(claimed, monkeypatch):
    """Here the weight of cross-entropy is one more than the sum of the accuracies of the epochs that are over."""
    job = claimed("refit", {}, taught=False, epochs=3)
    lines = job.lines()
    weight = Weight(jnp.zeros(()), lambda p, step: 1.0 + p, lambda p, history: jnp.nansum(history, dtype=jnp.float32))
    monkeypatch.setattr(type(job), "lines", lambda self: {"ce": lines["ce"]._replace(weight=weight)})
    seen = train(job).records
    accuracies = np.cumsum([0.0] + [record["train_accuracy"] for record in seen[:-1]])
    np.testing.assert_allclose([record["terms"]["ce"]["weight"] for record in seen], 1 + accuracies, rtol=1e-6)


def test_the_weight_of_a_line_is_current_where_its_value_is_not(claimed):
    """It is computed at step 0 alone, at weight 0; the weight goes on to grow."""
    terms = {"late": {"term": "ce", "weight": 2.0, "every": 12, "schedule": config.schedule("linear")}}
    job = claimed("late", terms, taught=False, epochs=3, student__model="speck")
    train(job)
    late = [record["terms"]["late"] for record in records(job)]
    assert late[0]["value"] > 0
    assert [line["value"] for line in late[1:]] == [None, None]
    np.testing.assert_allclose([line["weight"] for line in late], [2 * step / 12 for step in (3, 7, 11)], rtol=1e-6)


def test_another_seed_begins_elsewhere_and_sees_another_order(make_job, begin):
    states, plans = zip(*(begin(Program(make_job({}, taught=False, seed=seed)))[:2] for seed in (0, 1)), strict=True)
    assert not np.array_equal(plans[0].index, plans[1].index)
    assert sha256(states[0].params) != sha256(states[1].params)


def test_a_value_that_is_not_finite_stops_the_run_and_spares_the_last_checkpoint(claimed):
    job = claimed("bad", {}, taught=False, epochs=3, optimizer__learning_rate=0.01)
    with pytest.raises(Interrupted):
        train(job, helpers.StopAt(5))  # leaves the checkpoint of step 6
    blown = type(job)(
        job.name,
        {**job.config, "optimizer": {**job.config["optimizer"], "learning_rate": 1e30}},
        job.workdir,
        job.dataset,
    )
    with pytest.raises(
        UserError, match=r"test: the .* became NaN or infinite at step [67]; the checkpoint of step 6 is"
    ):
        train(blown)
    store = Checkpoints(job.workdir / finished.CHECKPOINTS)
    assert store.latest == 6
    store.close()
    assert [record["epoch"] for record in records(job)] == [1]


# ------------------------------------------------------------------------------------------------ several students

SEEDS = (3, 11)


@pytest.mark.slow
@pytest.mark.parametrize("by_chunks", [False, True], ids=["steps", "chunks"])
@pytest.mark.parametrize("strategy", ["vmap", "unroll", "shard"])
def test_students_that_were_stopped_together_end_as_ones_that_were_not(claimed, strategy, by_chunks):
    """On two devices; a line at every third step, which does not divide the 4 or 16 steps of an epoch."""
    helpers.skip_if_not_vmapped(strategy)
    fields = {"student__model": "speck", "seeds": SEEDS, "seed_strategy": strategy, "ema": 0.9}
    # Between two chunks of the first epoch; in the second behind its chunks. Or in the middle of both
    stops = ((0, 6), (9, 31)) if by_chunks else ((2, 3), (1, 5))
    fields |= {"steps_per_call": 6, "batch_size": 4} if by_chunks else {}

    def job(name):
        # Refitted behind the first epoch: what stops in the second must come back with it
        adaptive = config.schedule("gompertz_adaptive")
        return claimed(name, {"kd": {"weight": 1.0, "every": 3, "schedule": adaptive}}, **fields)

    straight, stopped = job("straight"), job("stopped")
    program = Program(stopped)
    assert (program.strategy, program.chunk, len(program.devices)) == (strategy, 6 if by_chunks else 1, 2)
    expected = train(straight)
    assert (expected.state.weights["kd"]["reached"] > 0).all()
    for polls, step in stops:
        with pytest.raises(Interrupted) as caught:
            train(stopped, helpers.StopAt(polls))
        assert caught.value.step == step
    ended = train(stopped)
    same(ended.state, expected.state)
    assert ended.state.key.shape == (2,)
    for a, b in zip(jax.tree.leaves(ended.state), jax.tree.leaves(expected.state), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    assert records(stopped) == records(straight)
    assert [record["epoch"] for record in records(stopped)] == [1, 2]


@pytest.mark.slow
def test_readings_are_taken_of_each_student(claimed):
    """Here of numbers that each draws at its start; what reads them adds them up."""

    @losses.register("drawn")
    def drawn():
        def init(key, student, teacher, setup):
            return {}, {"numbers": jax.random.uniform(key, (5,))}

        def loss(heads, state, student, teacher, batch, key):
            return jnp.zeros(len(batch.labels)), state

        return Term("drawn", loss, init=init, readings=lambda state: {"sum": np.asarray(state["numbers"]).sum()})

    def run(name, **fields):
        job = claimed(name, {"drawn": {"weight": 1.0}}, taught=False, epochs=1, student__model="speck", **fields)
        (record,) = train(job).records
        return record

    together = run("together", seeds=SEEDS)
    expected = {str(seed): run(f"seed {seed}", seed=seed)["terms"]["drawn"]["sum"] for seed in SEEDS}
    found = {seed: record["terms"]["drawn"]["sum"] for seed, record in together["seeds"].items()}
    assert found == pytest.approx(expected)
    assert together["terms"]["drawn"]["sum"] == pytest.approx(np.mean(list(expected.values())))
    assert together["std"]["terms"]["drawn"]["sum"] == pytest.approx(np.std(list(expected.values()), ddof=1))
    assert len(set(expected.values())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "unroll", "shard"])
def test_each_students_weights_are_refitted_to_its_own_accuracies(claimed, monkeypatch, strategy):
    """On the host, with NumPy, where a traced history has no numbers."""
    helpers.skip_if_not_vmapped(strategy)
    job = claimed("refit", {}, taught=False, epochs=3, student__model="speck", seeds=SEEDS, seed_strategy=strategy)
    lines = job.lines()
    weight = Weight(jnp.zeros(()), lambda p, step: 1.0 + p, lambda p, history: jnp.asarray(np.nansum(history)))
    monkeypatch.setattr(type(job), "lines", lambda self: {"ce": lines["ce"]._replace(weight=weight)})
    seen = train(job).records
    for seed in map(str, SEEDS):
        own = [record["seeds"][seed] for record in seen]
        accuracies = np.cumsum([0.0] + [record["train_accuracy"] for record in own[:-1]])
        np.testing.assert_allclose([record["terms"]["ce"]["weight"] for record in own], 1 + accuracies, rtol=1e-6)


def test_the_student_whose_loss_is_not_finite_is_named(claimed, monkeypatch):
    initial = Program.initial

    def spoilt(self):
        state, frozen = initial(self)

        def of_the_second(x):
            values = np.array(x)
            values[1] = np.nan
            return jax.device_put(values, x.sharding)

        return state.replace(params=jax.tree.map(of_the_second, state.params)), frozen

    monkeypatch.setattr(Program, "initial", spoilt)
    job = claimed("bad", {}, taught=False, student__model="speck", seeds=SEEDS)
    message = "^test, seed 11: the term 'ce' became NaN or infinite at step 0; no checkpoint had been written yet in"
    with pytest.raises(UserError, match=message):
        train(job)


@pytest.mark.parametrize(
    ("fields", "count", "message"),
    [
        ({}, 2, ""),
        ({"seeds": SEEDS}, 2, ""),
        (
            {"student__model": "mobilenetv2_half"},
            2,
            "1 of 2 devices are used: mobilenetv2_half trains faster on one of a CPU's (cpu_devices)",
        ),
        ({"batch_size": 15}, 2, "1 of 2 devices are used: a batch of 15 is shared out evenly among 1"),
        (
            {"seeds": SEEDS},
            3,
            "2 of 3 devices are used: 2 seeds are shared out evenly among 2 groups of devices, and a batch of 16 among "
            "1 in each",
        ),
    ],
)
def test_devices_that_stand_idle_are_told(claimed, capsys, monkeypatch, fields, count, message):
    job = claimed("idle", {}, taught=False, epochs=1, **{"student__model": "speck", **fields})
    monkeypatch.setattr(jax, "device_count", lambda backend=None: count)
    loop._say_idle(Program(job), jax.device_count())
    said = [line for line in capsys.readouterr().err.splitlines() if "devices" in line]
    assert said == ([f"gkd_jax: test: {message}"] if message else [])


# ------------------------------------------------------------------------------------------------ what is kept


def test_the_teacher_is_neither_changed_nor_saved(claimed, teacher):
    before = jax.device_get(teacher.variables)
    job = claimed("kd", {"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "wrt": "classifier"}}, epochs=1)
    trained = train(job)
    same(teacher.variables, before)
    saved = json.loads((job.workdir / "checkpoints" / "4" / "state" / "_METADATA").read_text())
    leaves = {tuple(k["key"] for k in leaf["key_metadata"]) for leaf in saved["tree_metadata"].values()}
    assert {path[0] for path in leaves} == {
        "step", "params", "batch_stats", "heads", "terms", "weights", "opt", "ema", "history", "metrics",
        "first_nonfinite", "key",
    }  # fmt: skip
    held = sum(path[0] == "params" for path in leaves)
    assert held == len(jax.tree.leaves(trained.state.params))


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path):
    store = Checkpoints(tmp_path / "c")
    assert store.latest is None
    assert store.best is None
    tree = {"x": jax.numpy.arange(4.0)}
    for step, accuracy in ((1, 0.3), (2, 0.9), (3, 0.5), (4, 0.4)):
        store.save(step, jax.tree.map(lambda x, s=step: x * s, tree), accuracy)
    store.save(5, jax.tree.map(lambda x: x * 5, tree))  # an interrupted epoch has no accuracy
    store.wait()
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == [2, 5]
    assert (store.latest, store.best) == (5, 2)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    np.testing.assert_array_equal(store.load(abstract_like(tree, sharding))["x"], np.arange(4.0) * 5)
    np.testing.assert_array_equal(store.load(abstract_like(tree, sharding), 2)["x"], np.arange(4.0) * 2)
    with pytest.raises(UserError, match="of another architecture"):
        store.load(abstract_like({"x": jax.numpy.zeros(5)}, sharding))
    with pytest.raises(UserError, match="of another architecture"):
        store.load(abstract_like({"y": jax.numpy.zeros(4)}, sharding))
    store.close()


@pytest.mark.parametrize(
    ("every", "accuracies", "apart", "kept"),
    [
        (1, [None] * 6, 1e9, [1, 2, 3, 4, 5, 6]),
        (4, [None] * 6, 0.0, [4, 6]),
        ("auto", [None] * 6, 1e9, [6]),
        ("auto", [None] * 6, 0.0, [1, 2, 3, 4, 5, 6]),
        ("auto", [0.2, 0.1, 0.3, 0.3, 0.2, 0.2], 1e9, [1, 3, 4, 6]),
    ],
)
def test_which_epochs_become_checkpoints(claimed, monkeypatch, every, accuracies, apart, kept):
    """Automatically the best, the last, and others so many seconds apart; also by one that went on in between."""
    saved, given = [], iter(accuracies)
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *more: saved.append(step) or save(self, step, *more))
    monkeypatch.setattr(loop._Loop, "_accuracies", lambda self: [next(given)])
    monkeypatch.setattr(loop, "_APART", apart)
    job = claimed("kept", {}, taught=False, epochs=6, student__model="speck", checkpoint_every=every)
    with pytest.raises(Interrupted):  # in the fifth epoch
        train(job, helpers.StopAt(4 * job.steps_per_epoch + 1))
    stopped = saved.pop() if saved[-1] % job.steps_per_epoch else None
    train(job)
    assert stopped is not None
    assert [step / job.steps_per_epoch for step in saved] == kept


@pytest.mark.parametrize("count", [1, 2])
def test_accuracy_counts_every_image_once(monkeypatch, count):
    """In batches of 7 of 20 images, the last one filled up; the network reads its answer off the first pixel."""
    monkeypatch.setattr("gkd_jax.training.evaluate._BATCH", 7)

    def apply(variables, images, *, train):
        return Outputs(jax.nn.one_hot((images[:, 0, 0, 0] * 255 + 0.5).astype(int), 4)), {}

    images = np.zeros((20, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(20) % 4
    labels = np.where(np.arange(20) < 13, np.arange(20) % 4, (np.arange(20) + 1) % 4).astype(np.int32)
    model = Model(lambda key, x: {}, apply, lambda v: v)
    evaluator = Evaluator(model, images, labels, np.zeros(1), np.ones(1), jax.devices()[:count])
    assert evaluator({}) == 13 / 20


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_an_epoch_ends_bit_equal(tmp_path, compilation_cache):
    """SIGKILL leaves no time to save anything; the next start goes on from the last epoch's end."""

    def command(workdir):
        fields = {
            "epochs": 4, "batch_size": 16, "compare_alone": False, "plots": False, "teacher.model": "resnet8",
            "teacher.epochs": 1, "objective.terms.gradient.weight": 0.0, "compilation_cache": compilation_cache,
            "checkpoint_every": 1,
        }  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return [sys.executable, "-m", "gkd_jax.main", "--config=configs/digits.py", f"--workdir={workdir}", *flags]

    root = pathlib.Path(__file__).parents[2]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run(command(tmp_path / "straight"), cwd=root, env=env, check=True, capture_output=True)

    workdir = tmp_path / "killed"
    process = subprocess.Popen(command(workdir), cwd=root, env=env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    metrics = workdir / METRICS
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "summary.json").exists()

    subprocess.run(command(workdir), cwd=root, env=env, check=True, capture_output=True)
    ours, expected = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("killed", "straight"))
    for network in ("teacher", "student"):
        assert ours[network]["params_sha256"] == expected[network]["params_sha256"]
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
