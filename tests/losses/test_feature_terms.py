"""What all terms over feature maps have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import KEY, SETUP, TEACHER_WIDTHS, B, heads_of, outputs, values
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.errors import UserError
from gkd_jax.losses import feature, overhaul, review, term, vid, wkd_f

assert all((feature, overhaul, review, vid, wkd_f))  # imported to register their terms

NEEDS = {
    "fitnet": {"teacher.features"},
    "at": {"teacher.features"},
    "nst": {"teacher.features"},
    "vid": {"teacher.features"},
    "reviewkd": {"teacher.preact", "teacher.embedding"},
    "ofd": {"teacher.preact"},
    "wkd_f": {"teacher.features"},
}
LEARNING = sorted(set(NEEDS) - {"at", "nst"})
RNG = np.random.default_rng(3)
NORMS = tuple((jnp.asarray(RNG.normal(size=w)), jnp.asarray(RNG.normal(size=w))) for w in TEACHER_WIDTHS)
WITH_NORMS = SETUP._replace(teacher_norms=NORMS)


def _held(name, seed):
    """Returns what a cache would hold of the teacher for this term, and nothing else."""
    whole, needs = outputs(seed, widths=TEACHER_WIDTHS), term.create(name).needs
    held = {f: getattr(whole, f) if f"teacher.{f}" in needs else None for f in whole._fields}
    return whole._replace(**{**held, "grads": {}})


@functools.cache
def _case(name):
    """Returns a term, its outputs, heads away from their start, and its step, compiled once."""
    created = term.create(name)
    constants = jax.jit(lambda: created.constants(WITH_NORMS))()
    student, teacher = outputs(0), _held(name, 1)

    def run(heads, student, teacher):
        found = values(created, heads, student, teacher, constants)
        return found.mean(), found

    heads = heads_of(created, student, teacher, WITH_NORMS)
    return created, student, teacher, heads, run, jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("name", NEEDS)
def test_reads_what_it_declares(name):
    created, student, teacher, heads, _, step = _case(name)
    assert created.needs == NEEDS[name]
    (_, found), (in_heads, in_student, in_teacher) = step(heads, student, teacher)
    assert (found.shape, found.dtype) == ((B,), jnp.float32)
    assert all(np.any(g) for g in jax.tree.leaves(in_heads))
    assert any(np.any(g) for g in jax.tree.leaves(in_student))
    assert not any(np.any(g) for g in jax.tree.leaves(in_teacher))


@pytest.mark.parametrize("name", NEEDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(B)))
def test_the_order_of_the_batch_does_not_matter(name, seed, order):
    _, _, _, heads, _, step = _case(name)
    student, teacher, order = outputs(seed), _held(name, seed + 1000), np.array(order)
    (_, found), _ = step(heads, student, teacher)
    (_, permuted), _ = step(heads, *jax.tree.map(lambda x: x[order], (student, teacher)))
    np.testing.assert_allclose(permuted, found[order], rtol=1e-4, atol=1e-5)


# Of those that learn, all but "vid" have a BatchNorm behind their first layer.
@pytest.mark.parametrize("name", sorted(set(LEARNING) - {"vid"}))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1, 1000))
def test_the_size_of_the_students_features_does_not_matter(name, seed, scale):
    _, _, _, heads, _, step = _case(name)
    teacher = _held(name, seed + 1000)
    # From a hundred on, so that the epsilon of BatchNorm is nothing.
    (_, found), _ = step(heads, jax.tree.map(lambda x: 100 * x, outputs(seed)), teacher)
    (_, scaled), _ = step(heads, jax.tree.map(lambda x: 100 * scale * x, outputs(seed)), teacher)
    np.testing.assert_allclose(scaled, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NEEDS)
def test_zeros_and_large_features(name):
    _, student, teacher, heads, _, step = _case(name)
    for scale in (0.0, 1000.0):
        found = step(heads, jax.tree.map(lambda x, scale=scale: scale * x, student), teacher)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("name", NEEDS)
def test_bfloat16(name):
    _, student, teacher, heads, run, step = _case(name)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (student, teacher))
    again = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    _, found = jax.jit(run)(heads, *low)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, step(heads, *again)[0][1], rtol=1e-5)


@pytest.mark.parametrize("name", LEARNING)
def test_three_steps_lower_the_loss(name):
    created, student, teacher, _, _, step = _case(name)
    heads, state = jax.jit(lambda: created.init(KEY, student, teacher, WITH_NORMS))()
    assert state == ()
    rate = 1e-3 if name == "ofd" else 0.02
    losses = []
    for _ in range(4):
        (loss, _), (grads, *_) = step(heads, student, teacher)
        losses.append(float(loss))
        heads = jax.tree.map(lambda p, g: p - rate * g, heads, grads)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-4


@pytest.mark.parametrize("name", NEEDS)
def test_too_few_stages(name):
    created = term.create(name)
    one, missing = outputs(0, (8,), (4,)), outputs(0)._replace(features=None, preact=None, embedding=None)
    for student, said in ((one, "stage"), (missing, "not computed")):
        if name == "wkd_f" and student is one:
            continue  # reads the last of any number
        with pytest.raises(UserError, match=said):
            values(created, {}, student, outputs(1))
        if created.init is not term._no_heads:
            with pytest.raises(UserError, match=said):
                created.init(KEY, student, outputs(1), WITH_NORMS)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("at", {"power": 0.5}, "power is 0.5"),
        ("at", {"stages": (True,)}, "stages is .True,."),
        ("nst", {"stages": [True]}, "stages is"),
        ("vid", {"init_variance": 0.0}, "init_variance is 0.0"),
        ("reviewkd", {"max_width": 0}, "max_width is 0"),
        ("wkd_f", {"grid": 0}, "grid is 0"),
        ("wkd_f", {"ratio": -1.0}, "ratio is -1.0"),
    ],
)
def test_mistakes_are_named(name, given, said):
    with pytest.raises(UserError, match=said):
        term.create(name, **given)
