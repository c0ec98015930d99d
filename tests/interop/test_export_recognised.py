"""Operations in the place of others: the same values, and none left that a converter does not know."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gkd_jax.interop.recognised import LITERT, ONNX, rewritten

RULES = {"litert": LITERT, "onnx": ONNX}
MAPS = jax.ShapeDtypeStruct((2, 7, 6, 3), jnp.float32)
PADDING = [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (2, 0))]


def _pooled(kind, window, strides, padding):
    none = (0, 0)
    combine, start = {"sum": (lax.add, 0.0), "max": (lax.max, -jnp.inf)}[kind]
    return lambda x: lax.reduce_window(x, start, combine, (1, *window, 1), (1, *strides, 1), (none, *padding, none))


def _operations(function, argument):
    """Returns the names of all operations, those within functions too."""

    def within(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
            yield from itertools.chain.from_iterable(within(getattr(each, "jaxpr", each)) for each in inner)

    return set(within(jax.make_jaxpr(function)(argument).jaxpr))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("padding", PADDING, ids=str)
@pytest.mark.parametrize(("window", "strides"), [((3, 3), (2, 2)), ((2, 3), (1, 2))])
def test_pooling(rules, kind, padding, window, strides):
    function = _pooled(kind, window, strides, padding)
    again = rewritten(function, MAPS, RULES[rules])
    x = jnp.asarray(np.random.default_rng(0).normal(size=MAPS.shape) - 3, jnp.float32)  # negative: no zero may win
    np.testing.assert_allclose(again(x), function(x), atol=1e-5 if kind == "sum" else 0, rtol=0)
    found = _operations(again, MAPS)
    assert f"reduce_window_{kind}" in _operations(function, MAPS)
    if kind == "sum":
        assert "conv_general_dilated" in found
        assert "reduce_window_sum" not in found
    else:
        assert ("reduce_window_max" in found) == (rules == "litert")
        assert "pad" not in found  # whose -inf a quantiser takes for a value


@pytest.mark.parametrize("rules", RULES)
def test_what_is_no_pooling_of_maps_stays(rules):
    over_channels = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 1, 3), (1, 1, 1, 1), "VALID")
    empty_windows = lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), ((0, 0), (2, 2), (0, 0), (0, 0))
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=MAPS.shape), jnp.float32)
    for function in (over_channels, empty_windows):
        again = rewritten(function, MAPS, RULES[rules])
        np.testing.assert_array_equal(again(x), function(x))
        assert "reduce_window_max" in _operations(again, MAPS)


def test_functions_within_functions():
    """Pooling is found in functions within functions, which are written out; a loop is done as it was."""

    @jax.custom_jvp
    def shifted(x):
        return _pooled("max", (2, 2), (2, 2), PADDING[0])(x) + 1

    shifted.defjvp(lambda given, moved: (shifted(*given), moved[0]))

    def function(x):
        x = jax.jit(lambda x: jax.nn.relu(shifted(x)))(x)
        _, sums = lax.scan(lambda carry, row: (carry + row.sum(), row.mean()), 0.0, x)
        return sums + jax.checkpoint(jnp.sin)(x).sum((1, 2, 3))

    again = rewritten(function, MAPS, ONNX)
    x = jnp.asarray(np.random.default_rng(0).normal(size=MAPS.shape), jnp.float32)
    np.testing.assert_allclose(again(x), function(x), rtol=1e-6)
    before, found = _operations(function, MAPS), _operations(again, MAPS)
    assert {"custom_jvp_call", "reduce_window_max", "scan", "sin"} <= before
    assert {"scan", "sin"} <= found
    calls = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
    assert not found & calls
    assert not {name for name in found if name.startswith("reduce_window")}
