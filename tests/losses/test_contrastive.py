"""Against a memory in NumPy, float64, that gathers every row and takes every exponential, as the paper says it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.errors import UserError
from gkd_jax.losses import contrastive, term
from gkd_jax.outputs import Batch, Outputs, Setup

B, N, K, DIM, CLASSES = 4, 12, 9, 5, 3
TAU, MOMENTUM = 0.1, 0.6


@functools.partial(jax.jit, static_argnums=5)
def ours(student, teacher, memory, index, negatives, temperature=TAU):
    def total(student, teacher, memory):
        values, after = contrastive.contrast(
            student, teacher, memory, index, negatives, temperature=temperature, momentum=MOMENTUM
        )
        return jnp.mean(values), (values, after)

    # The memory's rows, but not whether it has been estimated
    grads, (values, after) = jax.grad(total, (0, 1, 2), has_aux=True, allow_int=True)(student, teacher, memory)
    return values, after, grads


class Slow:
    """The banks and constants of one run."""

    def __init__(self, memory):
        self.banks = {side: np.float64(getattr(memory, side)) for side in ("student", "teacher")}
        self.z = {"student": -1.0, "teacher": -1.0}

    def value(self, vectors, index, negatives):
        """Returns the loss, and what Z would be set to."""
        found, constants = 0.0, {}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            exponentials = np.array(
                [
                    [math.exp(v @ self.banks[other][j] / TAU) for j in (i, *others)]
                    for v, i, others in zip(vectors[side], index, negatives, strict=True)
                ]
            )
            constants[side] = z = self.z[side] if self.z[side] > 0 else exponentials.mean() * len(self.banks[other])
            p, noise = exponentials / z, len(negatives[0]) / len(self.banks[other])
            right = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7)).sum()
            wrong = np.log(noise / (p[:, 1:] + noise + 1e-7)).sum()
            found -= (right + wrong) / len(index)
        return found, constants

    def update(self, vectors, index, constants):
        self.z = constants
        for side, bank in self.banks.items():
            for v, i in zip(vectors[side], index, strict=True):
                bank[i] = MOMENTUM * bank[i] + (1 - MOMENTUM) * v
                bank[i] /= math.sqrt((bank[i] ** 2).sum())


def _directions(rng):
    x = rng.normal(size=(B, DIM))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_several_steps_equal_the_slow_memory():
    rng = np.random.default_rng(0)
    memory = contrastive.new_memory(jax.random.key(0), N, DIM)
    slow = Slow(memory)
    for _ in range(4):
        vectors = {side: _directions(rng) for side in ("student", "teacher")}
        index, negatives = rng.permutation(N)[:B], rng.integers(0, N, (B, K))
        single = [jnp.asarray(vectors[side], jnp.float32) for side in vectors]
        values, memory, grads = ours(*single, memory, jnp.asarray(index), jnp.asarray(negatives))
        expected, constants = slow.value(vectors, index, negatives)
        np.testing.assert_allclose(values.mean(), expected, rtol=1e-5)
        fixed = Slow(memory)  # Z is no function of the vectors, but is what this step set it to
        fixed.banks, fixed.z = slow.banks, constants
        for side, grad in zip(vectors, grads, strict=False):
            f = lambda x, side=side: fixed.value({**vectors, side: x}, index, negatives)[0]  # noqa: B023
            np.testing.assert_allclose(grad, central_gradient(f, vectors[side]), rtol=1e-4, atol=1e-5)
        assert not np.any(grads[2].student)
        assert not np.any(grads[2].teacher)
        slow.update(vectors, index, constants)
        np.testing.assert_allclose(memory.student, slow.banks["student"], atol=1e-6)
        np.testing.assert_allclose(memory.teacher, slow.banks["teacher"], atol=1e-6)
        np.testing.assert_allclose(np.exp(memory.log_z), list(slow.z.values()), rtol=1e-5)
        assert memory.estimated


def _arguments(seed=0):
    rng = np.random.default_rng(seed)
    vectors = [jnp.asarray(_directions(rng), jnp.float32) for _ in range(2)]
    return vectors, jnp.asarray(rng.permutation(N)[:B]), jnp.asarray(rng.integers(0, N, (B, K)))


def test_few_negatives_of_many_examples():
    """Where the published epsilon is no longer small beside the noise's share."""
    memory = contrastive.new_memory(jax.random.key(0), 20000, DIM)
    rng = np.random.default_rng(1)
    vectors = {side: _directions(rng) for side in ("student", "teacher")}
    index, negatives = rng.permutation(20000)[:B], rng.integers(0, 20000, (B, 1))
    single = [jnp.asarray(x, jnp.float32) for x in vectors.values()]
    values, *_ = ours(*single, memory, jnp.asarray(index), jnp.asarray(negatives))
    np.testing.assert_allclose(values.mean(), Slow(memory).value(vectors, index, negatives)[0], rtol=1e-5)


def test_new_rows_are_uniform_with_expected_length_one():
    memory = contrastive.new_memory(jax.random.key(1), 400, 128)
    assert np.abs(memory.student).max() <= math.sqrt(3 / 128)
    np.testing.assert_allclose(np.mean(np.sum(np.square(memory.student), axis=1)), 1, atol=0.01)
    assert np.abs(np.mean(memory.teacher)) < 1e-3
    assert not np.allclose(memory.student, memory.teacher)
    assert not memory.estimated


def _close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(B)), places=st.permutations(range(N)))
def test_order_does_not_matter(seed, order, places):
    """Of the batch, of the negatives, of the examples in the memory."""
    (s, t), index, negatives = _arguments(seed)
    order, places = jnp.array(order), jnp.array(places)
    memory = contrastive.new_memory(jax.random.key(seed), N, DIM)
    values, after, _ = ours(s, t, memory, index, negatives)
    turned, same, _ = ours(s[order], t[order], memory, index[order], negatives[order])
    np.testing.assert_allclose(turned, values[order], rtol=1e-5)
    _close(same, after, atol=1e-6)
    np.testing.assert_allclose(ours(s, t, memory, index, negatives[:, ::-1])[0], values, rtol=1e-5)
    moved = memory._replace(student=memory.student[places], teacher=memory.teacher[places])
    now_at = jnp.argsort(places)
    found, kept, _ = ours(s, t, moved, now_at[index], now_at[negatives])
    np.testing.assert_allclose(found, values, rtol=1e-5)
    _close(kept, after._replace(student=after.student[places], teacher=after.teacher[places]), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_rotation_of_the_common_space_and_the_names_of_the_networks_do_not_matter(seed):
    (s, t), index, negatives = _arguments(seed)
    memory = contrastive.new_memory(jax.random.key(seed), N, DIM)
    values, after, _ = ours(s, t, memory, index, negatives)
    assert np.all(values > 0)
    swapped = memory._replace(student=memory.teacher, teacher=memory.student)
    np.testing.assert_allclose(ours(t, s, swapped, index, negatives)[0], values, rtol=1e-5)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0]
    turn = lambda x: jnp.asarray(np.float64(x) @ q, jnp.float32)
    both = lambda m: m._replace(student=turn(m.student), teacher=turn(m.teacher))
    found, kept, _ = ours(turn(s), turn(t), both(memory), index, negatives)
    np.testing.assert_allclose(found, values, rtol=2e-5)  # scores up to 10 round to 1e-6 in each of 20 decisions
    _close((kept.student, kept.teacher), (both(after).student, both(after).teacher), atol=1e-6)
    np.testing.assert_allclose(kept.log_z, after.log_z, atol=1e-5)


def test_no_temperature_overflows():
    (s, t), index, negatives = _arguments()
    memory = contrastive.new_memory(jax.random.key(0), N, DIM)
    values, after, grads = ours(s, t, memory, index, negatives, 1e-3)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(after.log_z))
    assert all(np.all(np.isfinite(grad)) for grad in grads[:2])


# ------------------------------------------------------------------------------------------ negatives


def test_negatives_are_uniform_over_other_classes(key):
    labels = np.array([2, 0, 1, 1, 0, 3, 0, 3, 0, 1])  # of 5 classes, one without examples
    split = contrastive.by_class(jnp.asarray(labels), 5)
    batch = jnp.arange(5)
    drawn = np.asarray(jax.jit(contrastive.draw_negatives, static_argnums=3)(key, batch, split, 4000))
    assert drawn.shape == (5, 4000)
    for c in range(5):
        share = np.bincount(drawn[c], minlength=10) / 4000
        allowed = labels != c
        assert not np.any(share[~allowed])
        # Five standard deviations of a share
        np.testing.assert_allclose(share[allowed], 1 / allowed.sum(), atol=5 * math.sqrt(0.1 / 4000))


def test_a_split_of_one_class_still_gives_examples(key):
    split = contrastive.by_class(jnp.ones(4, jnp.int32), 2)
    drawn = np.asarray(contrastive.draw_negatives(key, jnp.ones(2, jnp.int32), split, 7))
    assert drawn.min() >= 0
    assert drawn.max() < 4


# ------------------------------------------------------------------------------------------ the term


def _outputs(seed, width, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return Outputs(
        jnp.asarray(rng.normal(size=(B, CLASSES)), jnp.float32), jnp.asarray(scale * rng.normal(size=(B, width)), dtype)
    )


LABELS = jnp.arange(N) % CLASSES
SETUP = Setup(CLASSES, N, N // B, LABELS)
CREATED = term.create("crd", dim=DIM, negatives=20, temperature=TAU)  # more negatives than examples


@jax.jit
def _step(heads, state, student, teacher, index, key):
    labels = LABELS[index]
    batch = Batch({}, labels, jax.nn.one_hot(labels, CLASSES), index, index, jnp.int32(0))
    batch = batch._replace(constants=CREATED.constants(SETUP))

    def total(heads, student, teacher):
        values, after = CREATED.loss(heads, state, student, teacher, batch, key)
        return jnp.mean(values), (values, after)

    grads, (values, after) = jax.grad(total, (0, 1, 2), has_aux=True)(heads, student, teacher)
    return values, after, grads


@functools.cache
def _begin():
    shapes = jax.eval_shape(lambda: (_outputs(0, 6), _outputs(1, 8)))
    return CREATED.init(jax.random.key(0, impl="rbg"), *shapes, SETUP)


@pytest.fixture
def begun():
    return _begin()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), scales=st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)))
def test_the_size_of_embeddings_does_not_matter(seed, scales):
    """While the biases of the heads are zero, as at the start."""
    key, index = jax.random.key(seed, impl="rbg"), jnp.array([3, 7, 1, 10])
    found, after, _ = _step(*_begin(), _outputs(seed, 6), _outputs(seed + 1000, 8), index, key)
    other = _outputs(seed, 6, scales[0]), _outputs(seed + 1000, 8, scales[1])
    scaled, same, _ = _step(*_begin(), *other, index, key)
    np.testing.assert_allclose(scaled, found, rtol=2e-5)
    _close(same, after, atol=1e-5)


def test_both_heads_are_trained_and_nothing_else_of_the_teacher(begun, key):
    heads, state = begun
    assert {side: h["kernel"].shape for side, h in heads.items()} == {"student": (6, DIM), "teacher": (8, DIM)}
    assert CREATED.needs == {"teacher.embedding"}
    student, teacher, index = _outputs(0, 6), _outputs(1, 8), jnp.array([3, 7, 1, 10])
    values, after, (in_heads, in_student, in_teacher) = _step(heads, state, student, teacher, index, key)
    assert (values.shape, values.dtype) == ((B,), jnp.float32)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(in_heads))
    assert np.any(in_student.embedding)
    assert not np.any(in_teacher.embedding)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    rest = np.setdiff1d(np.arange(N), index)
    np.testing.assert_array_equal(after.student[rest], state.student[rest])
    np.testing.assert_allclose(np.linalg.norm(after.teacher[index], axis=1), np.ones(B), rtol=1e-5)


def test_the_term_is_the_formula_of_normalised_embeddings(begun, key):
    heads, state = begun
    student, teacher, index = _outputs(0, 6), _outputs(1, 8), jnp.array([3, 7, 1, 10])
    found, *_ = _step(heads, state, student, teacher, index, key)
    vectors = []
    for side, outputs in (("student", student), ("teacher", teacher)):
        x = np.float64(outputs.embedding) @ np.float64(heads[side]["kernel"])
        vectors.append(jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32))
    split = contrastive.by_class(LABELS, CLASSES)
    negatives = contrastive.draw_negatives(key, LABELS[index], split, 20)
    expected, _ = contrastive.contrast(*vectors, state, index, negatives, temperature=TAU)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_same_key_gives_the_same_step_and_another_another(begun, key):
    student, teacher, index = _outputs(0, 6), _outputs(1, 8), jnp.arange(B)
    a, b = (_step(*begun, student, teacher, index, key)[:2] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    other, _, _ = _step(*begun, student, teacher, index, jax.random.fold_in(key, 1))
    assert not np.allclose(other, a[0])


def test_it_falls_when_embeddings_agree_step_by_step(begun, key):
    """The student copies the teacher: then each example's own row scores highest."""
    heads, state = begun
    heads = {**heads, "student": heads["teacher"]}
    teacher, far, index = _outputs(1, 8, 3.0), _outputs(2, 8, 3.0), jnp.arange(B)
    for i in range(3):
        values, state, _ = _step(heads, state, teacher, teacher, index, jax.random.fold_in(key, i))
    assert values.mean() < _step(heads, state, far, teacher, index, key)[0].mean()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1000.0])
def test_embeddings_of_any_size_give_finite_numbers(begun, key, scale):
    heads, state = begun
    student, teacher, index = _outputs(0, 6, scale), _outputs(1, 8, scale), jnp.zeros(B, jnp.int32) + 3 * jnp.arange(B)
    values, after, grads = _step(heads, state, student, teacher, index, key)  # a batch of one class
    assert np.all(np.isfinite(values))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((after, grads)))


def test_bfloat16_embeddings(begun, key):
    student, teacher = (_outputs(seed, width, dtype=jnp.bfloat16) for seed, width in ((0, 6), (1, 8)))
    wide = [o._replace(embedding=o.embedding.astype(jnp.float32)) for o in (student, teacher)]
    found, after, _ = _step(*begun, student, teacher, jnp.arange(B), key)
    assert found.dtype == after.student.dtype == jnp.float32
    np.testing.assert_allclose(found, _step(*begun, *wide, jnp.arange(B), key)[0], rtol=1e-5)


def test_published_sizes_are_the_defaults():
    assert term.options("crd") == {"dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: 0 <= momentum < 1"),
    ],
)
def test_mistakes_are_named(given, said):
    with pytest.raises(UserError, match=said):
        term.create("crd", **given)


def test_a_split_without_labels_or_other_classes_is_refused():
    with pytest.raises(UserError, match="labels of the training split"):
        CREATED.constants(Setup(CLASSES, N, 3))
    with pytest.raises(UserError, match="there is 1 class"):
        CREATED.constants(Setup(1, N, 3, jnp.zeros(N, jnp.int32)))
