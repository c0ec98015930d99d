"""Mean and deviation over seeds."""

import math

import pytest

from gkd_jax.reporting.files import dumps
from gkd_jax.reporting.spread import over_seeds


def test_numbers_are_averaged_at_every_depth():
    records = {
        "0": {"loss": 1.0, "val": None, "terms": {"kd": {"value": 2.0, "stage": "rapid", "late": None}}},
        "7": {"loss": 2.0, "val": None, "terms": {"kd": {"value": 4.0, "stage": "rapid", "late": None}}},
        "9": {"loss": 6.0, "val": None, "terms": {"kd": {"value": 9.0, "stage": "rapid", "late": None}}},
    }
    found = over_seeds(records)
    assert found["loss"] == pytest.approx(3.0)
    assert found["terms"]["kd"] == {"value": pytest.approx(5.0), "stage": "rapid", "late": None}
    assert found["val"] is None
    # Squared deviations of the losses 4 + 1 + 9, of the values 9 + 1 + 16, over n - 1 = 2
    assert found["std"] == {
        "loss": pytest.approx(math.sqrt(7)),
        "terms": {"kd": {"value": pytest.approx(math.sqrt(13))}},
    }
    assert found["seeds"] == records


def test_a_value_that_one_seed_lacks_has_no_mean():
    found = over_seeds({"0": {"x": 1.0}, "1": {"x": None}})
    assert found["x"] is None
    assert found["std"] == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_neither_mean_nor_deviation(bad):
    found = over_seeds({"0": {"x": 1.0, "y": 1.0}, "1": {"x": bad, "y": 3.0}, "2": {"x": math.inf, "y": 5.0}})
    assert math.isnan(found["x"])
    assert math.isnan(found["std"]["x"])
    assert (found["y"], found["std"]["y"]) == (3.0, 2.0)
    assert '"std": {"x": null, "y": 2.0}' in dumps(found)
