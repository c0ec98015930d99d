"""The adaptive Gompertz weight: what it fits, and what it never does."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax import config, curves, objective
from gkd_jax.adaptive import fit, gompertz_adaptive
from gkd_jax.errors import UserError

EPOCHS, STEPS = 40, 400


def _growth(t, peak, inflection, rate):
    return peak * np.exp(-np.exp(-rate * (np.asarray(t) - inflection)))


def _middles(count):
    return (np.arange(count) + 0.5) / EPOCHS


def _history(accuracies):
    return jnp.asarray([*accuracies, *[math.nan] * (EPOCHS - len(accuracies))], jnp.float32)


def _weight(**given):
    return gompertz_adaptive(
        **{"peak_value": 1.0, "inflection": 0.3, "rate": 10.0, "min_inflection": 0.1, **given}, transition_steps=STEPS
    )


def _followed(weight, accuracies):
    """Returns the weight at every step of a run whose epochs have these accuracies."""
    params, found, per_epoch = weight.init, [], STEPS // EPOCHS
    for epoch in range(EPOCHS):
        found += [float(weight.at(params, epoch * per_epoch + step)) for step in range(per_epoch)]
        params = weight.refit(params, _history(accuracies[: epoch + 1]))
    return np.array(found), params


@pytest.mark.parametrize(("inflection", "rate"), [(0.2, 8.0), (0.4, 15.0), (0.6, 6.0)])
def test_a_gompertz_curve_is_found_again(inflection, rate):
    accuracies = _growth(_middles(EPOCHS), 0.8, inflection, rate)
    found = fit(accuracies, EPOCHS, 0.3, 10.0, 0.1)
    np.testing.assert_allclose(found, (inflection, rate), rtol=0.05)
    # Also with noise, and a single epoch that is far off
    noisy = accuracies + np.random.default_rng(0).normal(0, 0.01, EPOCHS)
    noisy[EPOCHS // 2] = 0.01
    np.testing.assert_allclose(fit(np.clip(noisy, 0, 1), EPOCHS, 0.3, 10.0, 0.1), (inflection, rate), rtol=0.1)


def test_the_weight_follows_the_students_stage():
    """Where the accuracy is a Gompertz curve, the weight comes within a tenth of it, over its asymptote, and to it."""
    weight = _weight(peak_value=3.0)
    followed, params = _followed(weight, _growth(_middles(EPOCHS), 0.7, 0.5, 12.0))
    late = np.arange(STEPS // 2, STEPS)
    np.testing.assert_allclose(followed[late], 3 * _growth(late / STEPS, 1.0, 0.5, 12.0), atol=3 * 0.1)
    np.testing.assert_allclose(
        weight.bounds(params), 0.5 + np.array([-1, 1]) * math.log((3 + 5**0.5) / 2) / 12, rtol=0.02
    )


def test_a_few_epochs_do_not_move_it_far():
    params = _weight().refit(_weight().init, _history([0.1]))
    assert abs(float(params["inflection"]) - 0.3) < 0.1
    assert abs(math.log(float(params["rate"]) / 10)) < 0.4


@pytest.mark.parametrize("epochs", [20, 240])
@pytest.mark.parametrize(("first", "gain"), [(0.3, 0.4), (0.03, 0.32), (0.1, 0.8)])
def test_no_jump_and_grown_up_in_the_end(epochs, first, gain):
    """Concave accuracies, as real ones are: no step changes the weight by more than twice what the plain curve's do."""
    steps = 10 * epochs
    weight, found = gompertz_adaptive(1.0, 0.3, 10.0, 0.1, steps), []
    accuracies = np.concatenate([first + gain * ((np.arange(epochs) + 0.5) / epochs) ** 0.6])
    params = weight.init
    for epoch in range(epochs):
        found += [float(weight.at(params, 10 * epoch + step)) for step in range(10)]
        history = np.full(epochs, np.nan)
        history[: epoch + 1] = accuracies[: epoch + 1]
        params = weight.refit(params, history)
    steepest = 10 / math.e / steps  # of the plain curve
    assert np.diff(found).max() <= 2 * steepest + 1e-6
    assert found[-1] > 0.95


def test_concave_from_the_start_is_not_saturation():
    accuracies = 0.9 * (1 - np.exp(-8 * _middles(EPOCHS)))
    for least in (0.05, 0.15, 0.25):
        followed, params = _followed(_weight(min_inflection=least), accuracies)
        assert float(params["inflection"]) >= np.float32(least)
        assert followed[: STEPS // 20].max() < 0.37


def test_before_the_first_epoch_has_ended_it_is_the_plain_curve():
    weight = _weight()
    np.testing.assert_allclose(
        [float(weight.at(weight.init, step)) for step in (0, 50, 120)],
        _growth(np.array([0, 50, 120]) / STEPS, 1.0, 0.3, 10.0),
        rtol=1e-4,
    )
    assert weight.refit(weight.init, _history([])) is weight.init


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=EPOCHS, max_size=EPOCHS), st.floats(0.01, 0.3))
def test_never_nan_never_falling_never_above_its_peak(accuracies, least):
    followed, params = _followed(_weight(min_inflection=least), accuracies)
    assert np.isfinite(followed).all()
    assert all(np.isfinite(value) for value in params.values())
    assert (np.diff(followed) >= -1e-6).all()
    assert followed.max() <= 1
    assert float(params["inflection"]) >= np.float32(least)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_accuracies_that_do_not_grow(accuracy):
    followed, _ = _followed(_weight(), [accuracy] * EPOCHS)
    assert np.isfinite(followed).all()
    assert (np.diff(followed) >= -1e-6).all()


def _built(mode="sum", **schedule):
    c = config.default()
    c.objective.mode = mode
    adaptive = config.schedule("gompertz_adaptive", **schedule)
    c.objective.terms.kd = objective.block("kd", weight=2.0)
    if mode == "convex":
        c.objective.schedule = adaptive
    else:
        c.objective.terms.kd.schedule = adaptive
    return objective.build(objective.resolve(c.objective.to_dict()), STEPS, config.steps_of(STEPS // EPOCHS, EPOCHS))


def test_in_an_objective():
    kd = _built(peak_value=0.5)["kd"].weight
    params = kd.refit(kd.init, _history(_growth(_middles(8), 0.9, 0.2, 15.0)))
    assert float(params["inflection"]) < 0.28
    assert float(kd.at(params, 350)) == pytest.approx(2 * 0.5 * _growth(350 / STEPS, 1.0, *_pair(params)), rel=1e-4)


def test_in_a_convex_objective_all_lines_agree():
    lines = _built("convex", peak_value=0.9)
    history = _history(_growth(_middles(30), 0.7, 0.5, 12.0))
    weights = {
        name: float(line.weight.at(line.weight.refit(line.weight.init, history), 350)) for name, line in lines.items()
    }
    assert weights["ce"] == pytest.approx(1 - weights["kd"] / 2, rel=1e-5)
    assert lines["ce"].weight.bounds(lines["ce"].weight.init) is None


def _pair(params):
    return float(params["inflection"]), float(params["rate"])


def test_an_option_cannot_be_fitted():
    c = config.default()
    c.objective.terms.kd = objective.block("kd", temperature=config.schedule("gompertz_adaptive", peak_value=4.0))
    with pytest.raises(UserError, match="objective.terms.kd: temperature takes no schedule that is fitted"):
        objective.build(objective.resolve(c.objective.to_dict()), STEPS, config.steps_of(10, EPOCHS))


def test_by_name():
    weight = curves.create("gompertz_adaptive", {"rate": 5, "min_inflection": 0.2}, STEPS, int)
    assert set(weight.init) == {"inflection", "rate", "reached", "since"}
    assert float(weight.init["rate"]) == 5
