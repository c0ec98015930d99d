import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import losses
from gkd_jax.errors import UserError
from gkd_jax.losses import term
from gkd_jax.outputs import Batch, Gradient, Outputs, Setup

B, CLASSES = 8, 4
GRADS = ("ce@input", "ce@feature:-2")


def _outputs(seed, width, side):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
    features = (array(2 * side, 2 * side, 3), array(side, side, width))
    grads = {"ce@input": array(8, 8, 3), "ce@feature:-2": 1e-12 * array(2 * side, 2 * side, width)}
    return Outputs(array(CLASSES), array(width), features[-1], features, None, grads)


def _batch():
    labels = jnp.asarray(np.random.default_rng(2).integers(0, CLASSES, B))
    targets = jax.nn.one_hot(labels, CLASSES)
    return Batch(
        {"weak": jnp.zeros((B, 8, 8, 3))}, labels, targets, jnp.arange(B), jnp.zeros(B, jnp.int32), jnp.int32(3)
    )


def _setup(width=6):
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(width, CLASSES)), jnp.float32)
    return Setup(CLASSES, 100, 10, None, kernel, jnp.zeros(CLASSES))


CASES = {
    "ce": ("ce", {"label_smoothing": 0.1}, set(), (B,), None),
    "kd": ("kd", {}, {"teacher.logits"}, (B,), None),
    "kd-schedule": ("kd", {"temperature": lambda step: 1.0 + step}, {"teacher.logits"}, (B,), None),
    "sinkhorn": ("wasserstein", {}, {"teacher.embedding"}, (), (5, 6)),
    "unrolled": ("wasserstein", {"solver": "unrolled"}, {"teacher.embedding"}, (), (5, 6)),
    "tokens": ("wasserstein", {"kind": "sinkhorn_tokens", "grid": 2}, {"teacher.features"}, (B,), (5, 6)),
    "gaussian": ("wasserstein", {"kind": "gaussian"}, {"teacher.features"}, (B,), (5, 6)),
    "sliced": ("wasserstein", {"kind": "sliced"}, {"teacher.embedding"}, (), (5, 6)),
    "sliced-tokens": ("wasserstein", {"kind": "sliced", "over": "tokens"}, {"teacher.features"}, (B,), (5, 6)),
    "logit": ("wasserstein", {"kind": "logit"}, {"teacher.logits"}, (B,), None),
    "input": ("gradient", {}, {"ce@input"}, (B,), None),
    "features": ("gradient", {"wrt": "features"}, {"ce@feature:-2"}, (B,), (5, 6)),
    "classifier": ("gradient", {"wrt": "classifier"}, {"teacher.logits", "teacher.embedding"}, (B,), (5, 6)),
}
WITH_ERROR = {"sinkhorn", "unrolled", "tokens", "logit"}


def _declared(teacher, needs):
    """What a cache would hold for a term with these needs, and nothing else."""
    names = {need.name if isinstance(need, Gradient) else need for need in needs}
    fields = {field: getattr(teacher, field) if f"teacher.{field}" in names else None for field in Outputs._fields}
    return Outputs(**{**fields, "grads": {k: v for k, v in teacher.grads.items() if k in names}})


def _run(created, heads, state, student, teacher, key):
    batch = _batch()._replace(constants=created.constants(_setup()))

    def total(student, heads):
        values, after = created.loss(heads, state, student, teacher, batch, key)
        return values.sum(), (values, after)

    grads, (values, after) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(student, heads)
    return values, after, *grads


@pytest.mark.parametrize("case", CASES)
def test_init_and_loss(case, key):
    name, given, needs, shape, kernel = CASES[case]
    created = losses.create(name, **given)
    assert created.name == name
    assert {need.name if isinstance(need, Gradient) else need for need in created.needs} == needs
    student, teacher = _outputs(0, 5, 4), _declared(_outputs(1, 6, 3), created.needs)
    shapes = jax.eval_shape(lambda: (student, teacher))
    heads, state = created.init(key, *shapes, _setup())
    assert [p.shape for p in jax.tree.leaves(heads) if p.ndim == 2] == ([kernel] if kernel else [])
    values, after, in_student, in_heads = _run(created, heads, state, student, teacher, key)
    assert (values.shape, values.dtype) == (shape, jnp.float32)
    assert np.all(np.isfinite(values))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert any(np.any(g) for g in jax.tree.leaves(in_student))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves((in_student, in_heads)))
    assert not kernel or np.any(in_heads["projection"]["kernel"])
    assert set(created.readings(after)) == ({"marginal_error"} if case in WITH_ERROR else set())
    assert case not in WITH_ERROR or 0 < created.readings(after)["marginal_error"] < 0.5


@pytest.mark.parametrize("case", sorted(set(CASES) - {"ce", "features"}))
def test_no_heads_and_zero_where_the_student_is_the_teacher(case, key):
    name, given, *_ = CASES[case]
    created, both = losses.create(name, **given), _outputs(0, 6, 4)
    heads, state = created.init(key, both, both, _setup())
    assert heads == {}
    values, _, in_student, _ = _run(created, heads, state, both, both, key)
    assert np.abs(values).max() < (1e-6 if name != "kd" else 4.0**2 * 1e-6)
    assert all(np.abs(g).max() < 1e-6 for g in jax.tree.leaves(in_student))


def test_feature_gradients_are_always_projected(key):
    created, both = losses.create("gradient", wrt="features"), _outputs(0, 6, 4)
    heads, state = created.init(key, both, both, _setup())
    same = {"projection": {"kernel": jnp.eye(6)}}
    assert heads["projection"]["kernel"].shape == (6, 6)
    value, _ = created.loss(same, state, both, both, _batch(), key)
    np.testing.assert_allclose(value, np.zeros(B), atol=1e-6)
    assert created.loss(heads, state, both, both, _batch(), key)[0].min() > 0.05


def test_cotangent_is_of_the_summed_cross_entropy():
    (need,) = losses.create("gradient").needs
    assert need == Gradient("ce@input", "input", lambda *_: jnp.zeros((B, CLASSES)), cacheable=True)
    z, batch = _outputs(0, 5, 4).logits, _batch()
    expected = jax.grad(lambda z: losses.cross_entropy(z, batch.targets).sum())(z)
    np.testing.assert_allclose(need.cotangent(z, None, batch, jax.random.key(0)), expected, atol=1e-6)
    (need,) = losses.create("gradient", wrt="features", stage=-3).needs
    assert dataclasses.astuple(need)[:2] == ("ce@feature:-3", "feature:-3")


def test_options_reach_the_formula(key):
    student, teacher, batch = _outputs(0, 6, 4), _outputs(1, 6, 4), _batch()

    def value(name, **given):
        created = losses.create(name, **given)
        heads, state = created.init(key, student, teacher, _setup())
        return np.asarray(created.loss(heads, state, student, teacher, batch, key)[0])

    smoothed = losses.cross_entropy(student.logits, 0.8 * batch.targets + 0.2 / CLASSES)
    np.testing.assert_allclose(value("ce", label_smoothing=0.2), smoothed, rtol=1e-6)
    scheduled = value("kd", temperature=lambda step: 1.0 + step)  # at step 3
    np.testing.assert_allclose(scheduled, losses.kd(student.logits, teacher.logits, 4.0), rtol=1e-6)
    assert value("wasserstein", label_cost=0.0) < value("wasserstein")
    np.testing.assert_allclose(
        value("wasserstein", kind="gaussian", ratio=0.0, stage=0),
        losses.gaussian(student.features[0], teacher.features[0], ratio=0.0),
        rtol=1e-6,
    )


def test_registered_names_and_options():
    assert {"ce", "kd", "wasserstein", "gradient"} <= set(losses.names())
    assert losses.options("gradient") == {"wrt": "input", "stage": -2}
    assert losses.options("kd") == {"temperature": 4.0, "standardize": False}
    assert losses.options("wasserstein")["kind"] == "sinkhorn"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("wassserstein", {}, "unknown term 'wassserstein' .did you mean 'wasserstein'.*: at, cc, ce, crd, "),
        ("kd", {"temprature": 2.0}, "no option 'temprature' .did you mean 'temperature'"),
        ("kd", {"temperature": 0.0}, "temperature is 0.0"),
        ("ce", {"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ("wasserstein", {"kind": "bures"}, "unknown kind 'bures'; known: sinkhorn, sinkhorn_tokens, gaussian"),
        ("wasserstein", {"solver": "pot"}, "unknown solver 'pot'; known: ott, unrolled"),
        ("wasserstein", {"over": "pixels"}, "unknown over 'pixels'; known: embedding, tokens"),
        ("wasserstein", {"epsilon": 0.0}, "epsilon is 0.0"),
        ("wasserstein", {"iterations": 0}, "iterations is 0"),
        ("wasserstein", {"label_cost": -1.0}, "label_cost is -1.0"),
        ("gradient", {"wrt": "weights"}, "unknown wrt 'weights'; known: input, features, classifier"),
    ],
)
def test_mistakes_are_named(name, given, said):
    with pytest.raises(UserError, match=said):
        losses.create(name, **given)


def test_logit_without_a_classifier():
    with pytest.raises(UserError, match="teacher's classifier"):
        losses.create("wasserstein", kind="logit").constants(Setup(CLASSES, 100, 10))


def test_a_plain_function_becomes_a_term(key, monkeypatch):
    monkeypatch.setattr(term, "_FACTORIES", dict(term._FACTORIES))

    @losses.register("difference", needs=["teacher.logits"])
    def difference(student, teacher, *, scale=2.0):
        return scale * jnp.sum((student.logits - teacher.logits) ** 2, axis=1)

    created = losses.create("difference", scale=3.0)
    student, teacher = _outputs(0, 5, 4), _outputs(1, 6, 3)
    values, state = created.loss({}, (), student, teacher, _batch(), key)
    np.testing.assert_allclose(values, difference(student, teacher, scale=3.0))
    assert created.init(key, student, teacher, _setup()) == ({}, ())
    assert (state, created.readings(())) == ((), {})
    with pytest.raises(ValueError, match="registered already"):
        losses.register("difference")(lambda: None)
    assert losses.register("difference", needs=["teacher.logits"])(difference) is difference  # a cell that runs twice


def test_ott_is_imported_silently_and_only_where_it_is_used():
    # In a trace, where a constant made by an import would be lost; a second trace would then find it leaked.
    code = """
import sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
import gkd_jax.losses as losses
assert not any(name.split(".")[0] in ("ott", "jaxopt") for name in sys.modules)
x = jnp.eye(4)
for solver in (1.0, 2.0):
    jax.jit(lambda x: losses.sinkhorn_divergence(x, x + solver).value)(x).block_until_ready()
assert "ott" in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
