import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd_jax import curves, schedules
from gkd_jax.errors import UserError

COUNTS = [0, 1, 7, 25, 30, 50, 99, 100, 101, 250, 10**9, 2**31 - 1]
N = 100  # steps of the run


def _t(count):
    return min(count / N, 1.0)


def _ramp(count, begin, length):
    return min(max((count - begin) / length, 0.0), 1.0)


def _half_cosine(low, high, s):
    return low + (high - low) * (1 - math.cos(math.pi * s)) / 2


# schedule, its closed form in float64
CURVES = {
    "constant": (schedules.constant(0.7), lambda n: 0.7),
    "gompertz": (schedules.gompertz(2.0, 20.0, 10.0, N), lambda n: 2 * math.exp(-20 * math.exp(-10 * _t(n)))),
    "gompertz_from_inflection": (
        schedules.gompertz_from_inflection(0.9, 0.3, 12.0, N),
        lambda n: 0.9 * math.exp(-math.exp(-12 * (_t(n) - 0.3))),
    ),
    "logistic": (schedules.logistic(1.5, 0.4, 8.0, N), lambda n: 1.5 / (1 + math.exp(-8 * (_t(n) - 0.4)))),
    "linear": (schedules.linear(0.2, 1.0, 50, 25), lambda n: 0.2 + 0.8 * _ramp(n, 25, 50)),
    "cosine": (schedules.cosine(1.0, 0.1, 50, 25), lambda n: _half_cosine(1.0, 0.1, _ramp(n, 25, 50))),
    "step": (schedules.step(0.1, 0.8, 30), lambda n: 0.1 if n < 30 else 0.8),
    "rise_then_decay": (
        schedules.rise_then_decay(1.2, 0.3, 30, 60),
        lambda n: _half_cosine(0, 1.2, _ramp(n, 0, 30)) if n < 30 else _half_cosine(1.2, 0.3, _ramp(n, 30, 60)),
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_schedule_is_its_closed_form(name):
    schedule, closed = CURVES[name]
    expected = [closed(count) for count in COUNTS]
    np.testing.assert_allclose([float(schedule(count)) for count in COUNTS], expected, rtol=2e-5, atol=1e-6)
    traced = jax.jit(schedule)
    np.testing.assert_allclose([float(traced(jnp.int32(n))) for n in COUNTS], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.broadcast_to(jax.vmap(schedule)(jnp.array(COUNTS, jnp.int32)), len(COUNTS)), expected, rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", CURVES)
def test_the_value_at_the_end_is_held(name):
    schedule, _ = CURVES[name]
    assert float(schedule(N)) == float(schedule(N + 1)) == float(schedule(10**9)) == float(schedule(2**31 - 1))


@pytest.mark.parametrize("inflection", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("rate", [0.5, 10.0, 40.0])
def test_gompertz_at_its_inflection(inflection, rate):
    # A long run, so that the finite difference in steps is fine
    n, peak = 100_000, 0.8
    weight = jax.jit(jax.vmap(schedules.gompertz_from_inflection(peak, inflection, rate, n)))
    at = round(inflection * n)
    np.testing.assert_allclose(weight(jnp.array([at]))[0], peak / math.e, rtol=1e-5)
    counts = jnp.arange(0, n + 1, 200)
    values = np.asarray(weight(counts), np.float64)
    slopes = np.diff(values) / (200 / n)
    steepest = peak * rate / math.e
    assert slopes.max() <= steepest * 1.002
    inside = min(max(at // 200, 1), len(slopes) - 1)
    np.testing.assert_allclose((slopes[inside - 1] + slopes[inside]) / 2, steepest, rtol=0.01)
    assert abs(np.argmax(slopes) * 200 - at) <= max(600, 0.02 * n / rate)


@pytest.mark.parametrize("name", ["gompertz", "gompertz_from_inflection", "logistic", "linear", "step"])
def test_growth_is_monotone_and_below_its_peak(name):
    values = np.asarray(jax.vmap(CURVES[name][0])(jnp.arange(2 * N)))
    assert (np.diff(values) >= 0).all()
    assert values.max() <= {"gompertz": 2.0, "gompertz_from_inflection": 0.9, "logistic": 1.5}.get(name, 1.0)
    assert values[-1] > values[0]


def test_both_parametrisations_are_one_curve():
    rate, inflection = 9.0, 0.35
    a = schedules.gompertz(0.9, math.exp(rate * inflection), rate, 777)
    b = schedules.gompertz_from_inflection(0.9, inflection, rate, 777)
    counts = jnp.arange(0, 1600, 13)
    np.testing.assert_allclose(jax.vmap(a)(counts), jax.vmap(b)(counts), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rate", [1e-6, 1e3, 1e30])
def test_no_rate_gives_nan(rate):
    for schedule in (
        schedules.gompertz_from_inflection(1.0, 0.3, rate, N),
        schedules.gompertz(1.0, 1e30, rate, N),
        schedules.logistic(1.0, 0.3, rate, N),
    ):
        values = np.asarray(jax.jit(jax.vmap(schedule))(jnp.array(COUNTS)))
        assert np.isfinite(values).all()
        assert (np.diff(values) >= 0).all()


def test_an_overflow_of_the_inner_exponential_is_the_zero_it_should_be():
    assert float(schedules.gompertz_from_inflection(1.0, 0.3, 1000.0, N)(0)) == 0.0
    assert float(schedules.gompertz_from_inflection(1.0, 0.3, 1000.0, N)(100)) == 1.0


@pytest.mark.parametrize(("name", "peak"), [("gompertz", 1.0), ("logistic", 1.0)])
def test_stages_are_bounded_by_the_zeros_of_the_third_derivative(name, peak):
    inflection, rate = 0.4, 11.0
    curve = {
        "gompertz": lambda t: peak * np.exp(-np.exp(-rate * (t - inflection))),
        "logistic": lambda t: peak / (1 + np.exp(-rate * (t - inflection))),
    }[name]
    h = 1e-3
    t = np.linspace(0, 1, 20_001)
    third = (curve(t + 2 * h) - 2 * curve(t + h) + 2 * curve(t - h) - curve(t - 2 * h)) / (2 * h**3)
    zeros = t[:-1][np.sign(third[:-1]) != np.sign(third[1:])]
    np.testing.assert_allclose(schedules.stage_bounds(name, inflection, rate), zeros, atol=2e-4)


def test_stage_names_at_the_edges():
    bounds = (0.2, 0.5)
    names = {t: schedules.stage(t, bounds) for t in (0.0, 0.2 - 1e-9, 0.2, 0.5 - 1e-9, 0.5, 1.0)}
    assert list(names.values()) == ["growth", "growth", "rapid", "rapid", "saturation", "saturation"]
    low, high = schedules.stage_bounds("gompertz", 0.05, 10.0)
    assert low < 0  # a curve that starts in its rapid stage
    assert schedules.stage(0.0, (low, high)) == "rapid"


def test_a_gompertz_curve_drives_an_optimiser():
    rate = schedules.gompertz_from_inflection(0.5, 0.3, 10.0, 10)
    optimizer = optax.sgd(rate)
    params = {"w": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for count in range(12):
        updates, state = update({"w": jnp.ones(2)}, state, params)
        expected = -0.5 * math.exp(-math.exp(-10 * (min(count / 10, 1) - 0.3)))
        np.testing.assert_allclose(updates["w"], [expected, expected], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: schedules.gompertz(1.0, 0.0, 10.0, N), "displacement"),
        (lambda: schedules.gompertz(1.0, -1.0, 10.0, N), "displacement"),
        (lambda: schedules.gompertz(1.0, 2.0, 0.0, N), "rate"),
        (lambda: schedules.gompertz(1.0, 2.0, math.nan, N), "rate"),
        (lambda: schedules.gompertz_from_inflection(1.0, 0.3, math.inf, N), "rate"),
        (lambda: schedules.gompertz_from_inflection(1.0, 0.3, 10.0, 0), "transition_steps"),
        (lambda: schedules.logistic(1.0, 0.3, -1.0, N), "rate"),
        (lambda: schedules.linear(0.0, 1.0, 0), "transition_steps"),
        (lambda: schedules.cosine(0.0, 1.0, -3), "transition_steps"),
        (lambda: schedules.rise_then_decay(1.0, 0.0, 0, 5), "transition_steps"),
    ],
)
def test_arguments_that_make_no_curve(make, name):
    with pytest.raises(ValueError, match=f"^{name} must be a finite number above 0, not "):
        make()


# ------------------------------------------------------------------------------------------------- by name


def _steps(duration):
    return {"0%": 0, "30%": 30, "80%": 80, "100%": 100}[duration]


def test_defaults_by_name():
    assert curves.resolve("gompertz", {}) == {"peak_value": 1.0, "inflection": 0.3, "rate": 10.0}
    assert curves.resolve("gompertz", {"displacement": 20}) == {
        "peak_value": 1.0,
        "displacement": 20.0,
        "rate": 10.0,
    }
    assert curves.resolve("linear", {}) == {"init_value": 0.0, "end_value": 1.0, "begin": "0%", "end": "100%"}
    # Parameters of other schedules and those left open are not part of the record
    given = {"inflection": 0.2, "rate": None, "begin": "10%"}
    assert curves.resolve("constant", given) == {"value": 1.0}
    assert curves.resolve("logistic", given) == {"peak_value": 1.0, "inflection": 0.2, "rate": 10.0}


def test_an_integer_is_the_same_parameter_as_its_float():
    resolved = curves.resolve("gompertz", {"rate": 10, "peak_value": 1})
    assert {k: type(v) for k, v in resolved.items()} == {"peak_value": float, "inflection": float, "rate": float}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("constant", {"value": 0.25}, [0.25, 0.25, 0.25]),
        ("gompertz", {}, [math.exp(-math.exp(3)), math.exp(-1), math.exp(-math.exp(-7))]),
        (
            "gompertz",
            {"displacement": 20.0, "rate": 5.0, "peak_value": 2.0},
            [2 * math.exp(-20 * math.exp(-5 * t)) for t in (0, 0.3, 1)],
        ),
        ("gompertz_adaptive", {"peak_value": 2.0}, [2 * math.exp(-math.exp(-10 * (t - 0.3))) for t in (0, 0.3, 1)]),
        ("logistic", {"peak_value": 0.5}, [0.5 / (1 + math.exp(3)), 0.25, 0.5 / (1 + math.exp(-7))]),
        ("linear", {}, [0.0, 0.3, 1.0]),
        ("cosine", {"init_value": 1.0, "end_value": 0.0}, [1.0, (1 + math.cos(0.3 * math.pi)) / 2, 0.0]),
        ("step", {}, [0.0, 1.0, 1.0]),
        ("rise_then_decay", {}, [0.0, 1.0, 0.0]),
    ],
)
def test_schedules_by_name(name, given, expected):
    curve = curves.create(name, given, 100, _steps)
    np.testing.assert_allclose([float(curve.at(curve.init, n)) for n in (0, 30, 100)], expected, rtol=1e-5, atol=1e-7)


def test_only_s_curves_have_stages():
    rate, displacement = 10.0, math.exp(4.0)

    def bounds_of(name, **given):
        curve = curves.create(name, given, 100, _steps)
        return curve.bounds(curve.init)

    bounds = {name: bounds_of(name) for name in curves.PARAMETERS}
    assert {name for name, found in bounds.items() if found} == {"gompertz", "gompertz_adaptive", "logistic"}
    bend = math.log((3 + math.sqrt(5)) / 2) / 10
    np.testing.assert_allclose(bounds["gompertz"], (0.3 - bend, 0.3 + bend))
    np.testing.assert_allclose(bounds["gompertz_adaptive"], bounds["gompertz"], rtol=1e-6)
    other = bounds_of("gompertz", displacement=displacement, rate=rate)
    np.testing.assert_allclose(other, (0.4 - bend, 0.4 + bend))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("gomperz", {}, "unknown schedule 'gomperz' .did you mean 'gompertz'.{2}; known: constant, cosine, gompertz"),
        ("gompertz", {"inflexion": 0.2}, "no schedule has a parameter 'inflexion' .did you mean 'inflection'.{2}"),
        ("gompertz", {"inflection": 0.2, "displacement": 3.0}, "inflection or displacement, not both"),
        ("gompertz", {"displacement": -3.0}, "'gompertz': displacement must be a finite number above 0, not -3.0"),
        ("gompertz", {"displacement": 3.0, "rate": 0}, "rate must be a finite number above 0, not 0"),
        ("gompertz_adaptive", {"rate": 50.0}, "rate must be between 4 and 40, not 50"),
        ("gompertz_adaptive", {"min_inflection": 0}, "min_inflection must be above 0 and below 1, not 0"),
        ("gompertz_adaptive", {"inflection": 0.05}, "inflection must be between min_inflection, 0.1, and 1, not 0.05"),
        ("gompertz", {"rate": "fast"}, "rate must be a finite number, not 'fast'"),
        ("gompertz", {"peak_value": math.nan}, "peak_value must be a finite number, not nan"),
        ("logistic", {"rate": -1.0}, "'logistic': rate must be a finite number above 0, not -1"),
        ("logistic", {"rate": 0}, "'logistic': rate must be a finite number above 0, not 0"),
        ("constant", {"value": True}, "value must be a finite number, not True"),
        ("linear", {"begin": "80%", "end": "30%"}, "end must come after begin, but they are steps 30 and 80"),
        ("cosine", {"begin": "100%"}, "end must come after begin, but they are steps 100 and 100"),
        ("rise_then_decay", {"peak": "100%"}, "end must come after peak"),
        ("rise_then_decay", {"peak": "0%"}, "must be a finite number above 0, not 0"),
    ],
)
def test_what_is_no_schedule(name, given, message):
    with pytest.raises(UserError, match=message):
        curves.create(name, given, 100, _steps)


def test_the_examples_in_the_docstrings():
    found = doctest.testmod(schedules)
    assert found.attempted >= 4
    assert found.failed == 0
