"""Students trained together against the same students trained alone."""

import jax
import numpy as np
import pytest

from gkd_jax.models import create
from gkd_jax.training import members
from gkd_jax.training.program import Program

SEEDS = (3, 11)
STEPS = 20
TERMS = {"kd": {"weight": 1.0}, "gradient": {"weight": 1.0, "wrt": "classifier"}}


@pytest.fixture
def trained(make_job):
    """Returns a function that trains for 20 steps, and gives the state and the program."""

    def train(devices, **fields):
        fields = {"student__model": "speck", "epochs": 5, "optimizer__learning_rate": 0.01, **fields}
        job = make_job({k: dict(v) for k, v in TERMS.items()}, **fields)
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


def test_every_student_is_the_one_that_it_would_be_alone(trained, alone):
    """On one device and on two, with batches of their own and with the first one's."""
    ways = [("vmap", 1), ("unroll", 1), ("unroll", 2), ("shard", 2)]
    for shared in (False, True):
        for strategy, devices in ways:
            state, program = trained(devices, seeds=SEEDS, seed_strategy=strategy, seeds_share_batches=shared)
            assert program.strategy == strategy
            assert len(program.devices) == devices
            for place, seed in enumerate(SEEDS):
                mine, expected = members.one_state(state, place), alone(seed, shared)
                assert int(mine.step) == STEPS
                for part in ("params", "batch_stats", "heads", "opt", "metrics", "history"):
                    pairs = zip(*(jax.tree.leaves(getattr(s, part)) for s in (mine, expected)), strict=True)
                    for a, b in pairs:
                        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{strategy} {shared} {part}")
    # The students differ, and so do the two ways of giving them batches
    first, second = (jax.tree.leaves(alone(seed, False).params) for seed in SEEDS)
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(first, second, strict=True))
    shared = jax.tree.leaves(alone(SEEDS[1], True).params)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(shared, second, strict=True))


def test_shared_batches_ask_the_teacher_once(make_job):
    """By the work of the program: two students cost two students and one teacher."""

    def flops(**fields):
        program = Program(make_job(student__model="resnet8", **fields), devices=jax.devices()[:1])
        state, frozen = program.initial()
        lowered = program.jitted_step_at(0).lower(state, program.plan(0), program.fixed(frozen))
        return lowered.cost_analysis()["flops"]

    one = flops(seed=3)
    for strategy in ("unroll", "vmap"):
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
    model = create(network, num_classes=10)
    assert members.strategy(count, devices, platform, model, (32, 32, 3)) == expected
