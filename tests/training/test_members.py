"""Students trained together against the same students trained alone."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import losses, models
from gkd_jax.losses.term import Term
from gkd_jax.outputs import Gradient, Model, Outputs
from gkd_jax.training import members
from gkd_jax.training.program import Program

SEEDS = (3, 11)
STEPS = 20
WAYS = [("vmap", 1), ("unroll", 1), ("unroll", 2), ("shard", 2)]
TERMS = {"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "wrt": "classifier"}}


@pytest.fixture
def trained(make_job):
    """Returns a function that trains for 20 steps, and gives the state and the program."""

    def train(devices, terms=TERMS, teacher=None, **fields):
        fields = {"student__model": "speck", "epochs": 5, "optimizer__learning_rate": 0.01, **fields}
        job = make_job({k: dict(v) for k, v in terms.items()}, **fields)
        job = dataclasses.replace(job, teacher=teacher or job.teacher)
        program = Program(job, devices=jax.devices()[:devices])
        state, frozen = program.initial()
        fixed, step = program.fixed(frozen), 0
        while step < STEPS:
            if step % job.steps_per_epoch == 0:
                plan = program.plan(step // job.steps_per_epoch)
            count = program.call_at(step)
            run = program.step_at(step, state, plan, fixed, count)
            state = jax.block_until_ready(run(state, plan, fixed))
            step += count
        return jax.device_get(state), program

    return train


@pytest.fixture
def alone(trained):
    """Returns a function that gives the state of one seed trained by itself, on the first seed's batches or its own."""
    known = {}

    def state(seed, shared):
        if (seed, shared) not in known:
            order = {"batch_seed": SEEDS[0]} if shared else {}
            known[seed, shared] = trained(1, seed=seed, **order)[0]
        return known[seed, shared]

    return state


def same(mine, expected, what):
    assert int(mine.step) == STEPS
    for part in ("params", "batch_stats", "heads", "opt", "metrics", "history"):
        for a, b in zip(*(jax.tree.leaves(getattr(s, part)) for s in (mine, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{what} {part}")


@pytest.mark.slow
def test_every_student_is_the_one_that_it_would_be_alone(trained, alone):
    """On one device and on two, with batches of their own and with the first one's, by steps and by chunks."""
    for shared in (False, True):
        for calls, (strategy, devices) in zip((2, 4, 1, 2), WAYS, strict=True):
            if strategy == "vmap" and not members.vmaps_convolutions():
                continue
            fields = {"seed_strategy": strategy, "seeds_share_batches": shared, "steps_per_call": calls}
            state, program = trained(devices, seeds=SEEDS, **fields)
            assert program.strategy == strategy
            assert len(program.devices) == devices
            assert program.chunk == calls
            for place, seed in enumerate(SEEDS):
                same(members.one_state(state, place), alone(seed, shared), f"{strategy} {shared}")
    # The students differ, and so do the two ways of giving them batches
    first, second = (jax.tree.leaves(alone(seed, False).params) for seed in SEEDS)
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(first, second, strict=True))
    shared = jax.tree.leaves(alone(SEEDS[1], True).params)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(shared, second, strict=True))


@pytest.mark.slow
def test_a_batch_that_all_devices_together_do_not_divide(trained):
    """Each of the two makes half of the batch of 15 for both."""
    expected = [trained(1, seed=seed, batch_seed=SEEDS[0], batch_size=15)[0] for seed in SEEDS]
    state, _ = trained(2, seeds=SEEDS, seed_strategy="shard", seeds_share_batches=True, batch_size=15)
    for place in range(len(SEEDS)):
        same(members.one_state(state, place), expected[place], "15")


@pytest.mark.slow
def test_a_teacher_that_draws_is_asked_by_each_student(trained, teacher):
    """Its gradient is along a direction of each step and seed, and so is the student's.

    The logits are four pixels times a scale, 1 for the teacher and at first 1.1 for the student: of one direction their
    gradients differ by a tenth of it, of two by some 2.2 times its square.
    """
    need = Gradient("random", "input", lambda logits, teacher, batch, key: jax.random.normal(key, logits.shape))

    @losses.register("random_direction")
    def random_direction():
        def loss(heads, state, student, teacher, batch, key):
            difference = student.grads["random"] - teacher.grads["random"]
            return jnp.sum(difference.reshape(len(batch.labels), -1) ** 2, -1), state

        return Term("random_direction", loss, frozenset({need}))

    def apply(variables, images, *, train, key=None, probes=None):
        pixels = images.reshape(images.shape[0], -1)[:, :4]
        return Outputs(pixels * variables["params"]["scale"][None], embedding=pixels), {}

    scaled = Model(lambda key, images: {"params": {"scale": jnp.full(4, 1.1)}}, apply, lambda v: (jnp.eye(4), None))
    models.register("scaled")(lambda num_classes, dtype, conv: scaled)
    fields = {
        "terms": {"random_direction": {"weight": 1.0}},
        "teacher": teacher._replace(model=scaled, variables={"params": {"scale": jnp.ones(4)}}),
        "student__model": "scaled",
    }
    expected = [trained(1, seed=seed, batch_seed=SEEDS[0], **fields)[0] for seed in SEEDS]
    assert np.abs(expected[0].params["scale"] - expected[1].params["scale"]).max() > 1e-4
    for strategy, devices in WAYS:
        state, _ = trained(devices, seeds=SEEDS, seed_strategy=strategy, seeds_share_batches=True, **fields)
        for place in range(len(SEEDS)):
            mine = members.one_state(state, place)
            same(mine, expected[place], strategy)
            line = mine.metrics.lines["random_direction"]
            assert 0 < line.value / line.count < 4 * 2.21 / 10


def lowered(program):
    state, frozen = program.initial()
    return program.jitted_step_at(0).lower(state, program.plan(0), program.fixed(frozen))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["unroll", "vmap"])
def test_shared_batches_ask_the_teacher_once(make_job, strategy):
    """By the work of the program: two students cost two students and one teacher."""
    helpers.skip_if_not_vmapped(strategy)

    def flops(**fields):
        program = Program(make_job(student__model="resnet8", **fields), devices=jax.devices()[:1])
        return lowered(program).cost_analysis()["flops"]

    one = flops(seed=3)
    own = flops(seeds=SEEDS, seed_strategy=strategy)
    shared = flops(seeds=SEEDS, seed_strategy=strategy, seeds_share_batches=True)
    assert own == pytest.approx(2 * one, rel=0.02)
    # The teacher is a resnet8 too, and its forward pass a quarter of a step that costs the student three
    assert shared == pytest.approx(2 * one - one / 4, rel=0.03)


def test_students_lie_on_their_devices(make_job):
    program = Program(make_job(seeds=(0, 1, 2, 3), student__model="speck"), devices=jax.devices()[:2])
    assert program.strategy == "shard"
    assert dict(program.mesh.shape) == {"seed": 2, "data": 1}
    state, _ = program.initial()
    kernel = state.params["classifier"]["kernel"]
    assert kernel.shape[0] == 4
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {2}
    assert {shard.data.shape[0] for shard in program.plan(0).index.addressable_shards} == {2}
    assert state.step.shape == ()


@pytest.mark.parametrize(
    ("count", "devices", "platform", "network", "expected"),
    [
        (2, 2, "cpu", "resnet20", "shard"),
        (3, 2, "cpu", "resnet20", "unroll"),
        (4, 1, "cpu", "resnet20", "unroll"),
        (8, 1, "gpu", "mobilenetv2_half", "vmap"),
        (8, 1, "gpu", "resnet8x4", "unroll"),
        (8, 4, "gpu", "mobilenetv2_half", "shard"),
    ],
)
def test_strategy_follows_the_machine_and_the_network(count, devices, platform, network, expected):
    model = models.create(network, num_classes=10)
    if expected == "vmap" and not members.vmaps_convolutions():
        expected = "unroll"
    assert members.strategy(count, devices, platform, model, (32, 32, 3)) == expected


@pytest.mark.slow
def test_all_devices_together_ask_the_teacher_once(make_job):
    """By the work of each of two devices: a student, and half of the teacher's pass, which is a quarter of a step."""

    def flops(devices, **fields):
        program = Program(make_job(student__model="resnet8", **fields), devices=jax.devices()[:devices])
        return lowered(program).compile().cost_analysis()["flops"]

    one = flops(1, seed=3)
    assert flops(2, seeds=SEEDS, seed_strategy="shard") == pytest.approx(one, rel=0.02)
    shared = flops(2, seeds=SEEDS, seed_strategy="shard", seeds_share_batches=True)
    assert shared == pytest.approx(one - one / 8, rel=0.03)


@pytest.mark.parametrize(("strategy", "devices"), [("unroll", 1), ("shard", 2)])
def test_a_chunk_keeps_the_students_apart(make_job, begin, strategy, devices):
    """Its loop carries an array for each student and leaf; the step's number each student counts for itself."""
    seeds = (0, 1, 2, 3)
    job = make_job({}, taught=False, student__model="speck", seeds=seeds, seed_strategy=strategy, steps_per_call=4)
    program = Program(job, devices=jax.devices()[:devices])
    state, plan, fixed = begin(program)
    assert program.call_at(0) == 4
    equations = program.jitted_step_at(0, 4).trace(state, plan, fixed).jaxpr.jaxpr.eqns
    (loop,) = (equation for equation in equations if equation.primitive.name == "scan")
    first, carried = loop.params["num_consts"], loop.params["num_carry"]
    assert carried == len(seeds) // devices * len(jax.tree.leaves(state))
    # A place for each group of devices, but for the step's number
    shapes = [x.aval.shape for x in loop.invars[first : first + carried]]
    assert {shape[:1] for shape in shapes} == {(), (devices,)}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("strategy", "devices"), [("vmap", 1), ("unroll", 1), ("shard", 2)])
def test_programs_lower_for_an_absent_platform(make_job, begin, platform, strategy, devices):
    """In the compute type and the chunks that "auto" is there."""
    helpers.skip_if_not_vmapped(strategy)
    terms = {"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "every": 2}}
    fields = {"seeds": SEEDS, "seed_strategy": strategy, "seeds_share_batches": True, "dtype": "bfloat16"}
    program = Program(make_job(terms, batch_size=8, **fields), devices=jax.devices()[:devices], platform=platform)
    state, plan, fixed = begin(program)
    assert program.call_at(0) == 6
    text = program.jitted_step_at(0, 6).trace(state, plan, fixed).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    assert "stablehlo.convolution" in text
    assert "bf16" in text


# Largest differences between the students of a grid of devices and the same students trained alone: two groups of two
# devices with one student each, and two of one device with two students
GRID = """
import dataclasses, json
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
import helpers
import numpy as np
from experiments import synthetic
from gkd_jax import config, objective
from gkd_jax.training import members
from gkd_jax.training.program import Program
from gkd_jax.training.resolve import resolve

SEEDS = (3, 11, 0, 5)

def resolved(**fields):
    given = config.default()
    given.epochs, given.batch_size, given.optimizer.learning_rate = 2, 16, 0.01
    given.student.model, given.teacher.model = "speck", "resnet8"
    given.objective.terms.kd = objective.block("kd")
    given.objective.terms.wasserstein = objective.block("wasserstein", solver="unrolled")
    for name, value in fields.items():
        given[name] = value
    return resolve(given)

def train(devices, **fields):
    job = dataclasses.replace(taught, config=resolved(**fields))
    program = Program(job, devices=jax.devices()[:devices])
    state, frozen = program.initial()
    plan, fixed, step = program.plan(0), program.fixed(frozen), 0
    while step < 4:
        count = program.call_at(step)
        state = program.ended(program.step_at(step, state, plan, fixed, count)(state, plan, fixed))
        step += count
    return jax.device_get(state), dict(program.mesh.shape)

found = {}
with helpers.registrations():
    taught = synthetic.job(resolved(), "resnet8", images=64, classes=4)
    for shared in (False, True):
        alone = [train(1, seed=seed, batch_seed=SEEDS[0] if shared else None)[0] for seed in SEEDS]
        for count, devices, calls in ((2, 4, 1), (2, 4, 2), (4, 2, 2)):
            fields = {"seed_strategy": "shard", "seeds_share_batches": shared, "steps_per_call": calls}
            together, grid = train(devices, seeds=SEEDS[:count], **fields)
            assert grid == {"seed": 2, "data": devices // 2}, grid
            for place in range(count):
                states = members.one_state(together, place), alone[place]
                pairs = zip(*(jax.tree.leaves((s.trained, s.batch_stats, s.history)) for s in states), strict=True)
                name = f"seed {SEEDS[place]} of {count}, shared {shared}, {calls} steps a call"
                found[name] = max(float(np.nanmax(np.abs(a - b))) for a, b in pairs)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_grid_of_devices_shares_out_seeds_and_batches(compilation_cache):
    tests = pathlib.Path(__file__).parents[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    found = subprocess.run([sys.executable, "-c", GRID], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    differences = json.loads(found.stdout)
    assert len(differences) == 2 * (2 + 2 + 4)
    for name, largest in differences.items():
        assert largest < 1e-5, name
