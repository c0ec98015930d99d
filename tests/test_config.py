import copy
import json
import math
import pathlib

import ml_collections
import numpy as np
import pytest

from gkd_jax import config, identity, objective
from gkd_jax.errors import UserError
from gkd_jax.training.resolve import resolve

# ------------------------------------------------------------------------------------------------ durations


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("20ep", 800),
        ("0.5ep", 20),
        (" 2 ep ", 80),
        ("10%", 120),
        ("62.5%", 750),
        ("100%", 1200),
        ("0%", 0),
        (".5%", 6),
        (300, 300),
        ("300", 300),
        (0, 0),
        (300.0, 300),
    ],
)
def test_durations_in_steps(duration, steps):
    # 30 epochs of 40 steps
    assert config.steps_in(duration, 40, 1200) == steps
    assert config.steps_of(40, 30)(duration) == steps


@pytest.mark.parametrize("duration", ["", "ep", "20 epochs", "-5ep", "-3", "5%%", "5 %ep", "1e3", "nan", "half"])
def test_what_is_no_duration(duration):
    with pytest.raises(UserError, match="a duration is '20ep' .* not '"):
        config.steps_in(duration, 40, 1200)


@pytest.mark.parametrize("duration", [0.1, "7.4"])
def test_a_share_needs_its_unit(duration):
    with pytest.raises(UserError, match=f"without a unit is a whole number of steps, not '?{duration}'?; did"):
        config.steps_in(duration, 40, 1200)


# ------------------------------------------------------------------------------------------------ validation


def _broken(path, value):
    """The default configuration with one field replaced, past the type checks of `ConfigDict`."""
    c = config.default()
    *parents, last = path.split(".")
    place = c
    for name in parents:
        place = place[name]
    with place.unlocked(), place.ignore_type():
        del place[last]
        place[last] = value
    return c


def test_the_default_configuration_is_valid():
    config.check(config.default())
    assert resolve(config.default())["dtype"] == "float32"  # the tests run on CPU


VIEWS_TOO = (
    "one of 'none', 'logits', 'embedding', 'gradients', or 'views:K' with a whole number K, 1 or above, not 'tokens'"
)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", -1, "between 0 and 4294967295, not -1"),
        ("seed", 2**32, "between 0 and 4294967295, not 4294967296"),
        ("epochs", 0, "between 1 and 1000000, not 0"),
        ("batch_size", 0, "between 1 and 1000000, not 0"),
        ("batch_size", -64, "between 1 and 1000000, not -64"),
        ("dtype", "float16", "one of 'auto', 'float32', 'bfloat16', not 'float16'"),
        ("ema", 1.0, "at least 0 and below 1, not 1.0"),
        ("ema", -0.1, "at least 0 and below 1, not -0.1"),
        ("ema", math.nan, "at least 0 and below 1, not nan"),
        ("checkpoint_every", 0, "'auto' or a whole number, 1 or above, not 0"),
        ("data.val_fraction", 1.0, "at least 0 and below 1, not 1.0"),
        ("data.val_fraction", -0.1, "at least 0 and below 1, not -0.1"),
        ("data.split_seed", -1, "between 0 and 4294967295, not -1"),
        ("data.pad", -1, "between 0 and 1000, not -1"),
        ("teacher.epochs", 0, "between 1 and 1000000, not 0"),
        ("teacher.batch_size", 0, "between 1 and 1000000, not 0"),
        ("teacher.seed", -1, "between 0 and 4294967295, not -1"),
        ("optimizer.learning_rate", -0.1, "a finite number, 0 or above, not -0.1"),
        ("optimizer.learning_rate", math.inf, "a finite number, 0 or above, not inf"),
        ("optimizer.learning_rate", math.nan, "a finite number, 0 or above, not nan"),
        ("optimizer.momentum", 1.0, "at least 0 and below 1, not 1.0"),
        ("optimizer.weight_decay", -1e-4, "a finite number, 0 or above, not -0.0001"),
        ("optimizer.schedule", "cos", "one of 'steps', 'cosine', not 'cos'"),
        ("optimizer.factor", 1.5, "between 0 and 1, not 1.5"),
        ("optimizer.warmup", "five", "a duration such as '5ep', '2%' or 300, not 'five'"),
        ("optimizer.drops", ("150ep", "later"), r"durations such as \('150ep', '75%'\), not \('150ep', 'later'\)"),
        ("teacher.optimizer.factor", -0.1, "between 0 and 1, not -0.1"),
        ("seeds", (0, 0), r"different whole numbers from 0 to 2\^32 - 1, such as \(0, 1, 2, 3\), not \(0, 0\)"),
        ("seeds", (0, -1), "different whole numbers"),
        ("seeds", (0, 0.5), "different whole numbers"),
        ("seed_strategy", "scan", "one of 'auto', 'vmap', 'shard', 'unroll', not 'scan'"),
        ("batch_seed", -1, "a whole number from 0 to"),
        ("steps_per_call", 0, "'auto' or a whole number, 1 or above, not 0"),
        ("steps_per_call", "many", "'auto' or a whole number"),
        ("cpu_devices", 1.5, "'auto' or a whole number, 1 or above, not 1.5"),
        ("compilation_cache", "", "'auto', 'off' or the path of a folder, not ''"),
        ("teacher.cache", "tokens", VIEWS_TOO),
        ("teacher.cache_memory", "2GB", "'auto' or a number of GiB, 0 or above, not '2GB'"),
        ("teacher.cache_memory", -1, "'auto' or a number of GiB"),
        ("teacher.cache_dir", " ", "'auto', 'off' or the path of a folder, not ' '"),
        ("teacher.optimizer.warmup", "-1", "a duration such as"),
    ],
)
def test_ranges(path, value, message):
    with pytest.raises(UserError, match=f"^{path} must be {message}"):
        config.check(_broken(path, value))


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("seed", "zero", "int"),
        ("seed", True, "int"),
        ("seed", 1.0, "int"),
        ("seed", None, "int"),
        ("epochs", "240", "int"),
        ("compare_alone", 1, "bool"),
        ("dtype", 32, "str"),
        ("ema", "0.9", "float or int"),
        ("ema", False, "float or int"),
        ("data.source", 10, "str"),
        ("data.flip", "yes", "bool"),
        ("teacher.model", 56, "str"),
        ("student.model", None, "str"),
        ("optimizer.learning_rate", "0.1", "float or int"),
        ("optimizer.drops", "62.5%", "tuple or list"),
        ("optimizer.warmup", None, "str or int or float"),
        ("optimizer.warmup", (1,), "str or int or float"),
    ],
)
def test_types(path, value, kind):
    with pytest.raises(UserError, match=f"^{path} must be of type {kind}, not "):
        config.check(_broken(path, value))


def test_an_integer_is_a_number_too():
    config.check(_broken("optimizer.learning_rate", 1))
    config.check(_broken("optimizer.drops", [150, "75%"]))
    config.check(_broken("optimizer.warmup", 300))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("epoch", r"unknown configuration field 'epoch' \(did you mean 'epochs'\?\)"),
        ("data.sorce", r"unknown configuration field 'data.sorce' \(did you mean 'source'\?\)"),
        ("teacher.optimizer.learningrate", r"'teacher.optimizer.learningrate' \(did you mean 'learning_rate'\?\)"),
        ("objective.term", r"'objective.term' \(did you mean 'terms'\?\)"),
        ("xyz", r"unknown configuration field 'xyz'$"),
    ],
)
def test_unknown_fields(path, message):
    c = config.default()
    *parents, last = path.split(".")
    place = c
    for name in parents:
        place = place[name]
    place[last] = 1
    with pytest.raises(UserError, match=message):
        config.check(c)


@pytest.mark.parametrize("path", ["seed", "data.pad", "teacher.optimizer.warmup", "objective.terms", "student"])
def test_missing_fields(path):
    c = config.default()
    *parents, last = path.split(".")
    place = c
    for name in parents:
        place = place[name]
    del place[last]
    with pytest.raises(UserError, match=f"lacks the field '{path}'; start from gkd_jax.config.default"):
        config.check(c)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("student", "resnet20", "student must hold fields, not 'resnet20'"),
        ("optimizer", 0.1, "optimizer must hold fields, not 0.1"),
        ("objective.terms", 3, "objective.terms must hold fields, not 3"),
        ("objective.ce", 1.0, "objective.ce must hold fields, not 1.0"),
        ("seed", ml_collections.ConfigDict({"data": 1}), "seed must be a value, not fields"),
        ("seed", ml_collections.ConfigDict(), "seed must be a value, not fields"),
    ],
)
def test_values_and_fields_are_not_mixed_up(path, value, message):
    with pytest.raises(UserError, match=message):
        resolve(_broken(path, value))


def test_what_json_cannot_hold_is_named():
    c = config.default()
    c.objective.terms.kd = objective.block("kd", temperature=4.0)
    with c.ignore_type():
        c.objective.terms.kd.temperature = lambda step: 4.0
    with pytest.raises(UserError, match=r"objective.terms.kd.temperature must be a number, a string or a list of them"):
        resolve(c)


# ------------------------------------------------------------------------------------------------ schedules, terms


def test_a_schedule_block_lists_the_parameters_of_all():
    block = config.schedule("linear", begin="20ep")
    assert block.name == "linear"
    assert block.begin == "20ep"
    assert {"rate", "inflection", "displacement", "peak_value", "value", "peak", "end"} < set(block)
    assert block.rate is None
    with pytest.raises(UserError, match="no schedule has a parameter 'start'"):
        config.schedule("linear", start=3)


def test_one_schedule_given_to_two_terms_is_two():
    rise = config.schedule("gompertz")
    first, second = (objective.block("kd", schedule=rise) for _ in range(2))
    first.schedule.rate = 3.0
    assert second.schedule.rate is None
    assert rise.rate is None


# ------------------------------------------------------------------------------------------------ identity


@pytest.fixture(scope="module")
def resolved():
    c = config.default()
    c.objective.terms.kd = objective.block("kd", schedule=config.schedule("gompertz"))
    return resolve(c)


NEUTRAL = {
    "compilation_cache": "off",
    "cpu_devices": 3,
    "data.data_dir": "/elsewhere",
    "data.residency": "host",
    "data.workers": 3,
    "plots": False,
    "recipe": "kd",
    "seed_strategy": "vmap",
    "steps_per_call": 7,
    "teacher.cache_dir": "off",
    "teacher.cache_memory": 3.5,
    "tensorboard": False,
}


def _with(resolved, path, value):
    changed = copy.deepcopy(resolved)
    *parents, last = path.split(".")
    place = changed
    for name in parents:
        place = place[name]
    place[last] = value
    return changed


def _other(value):
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, "99%"]
        case _:
            return "something"


def test_the_hash_ignores_neutral_fields_and_nothing_else(resolved):
    before = identity.config_hash(resolved)
    assert len(before) == 16
    int(before, 16)
    assert identity.config_hash(copy.deepcopy(resolved)) == before
    same = set()
    for path, value in config.leaves(resolved):
        changed = _with(resolved, path, _other(value))
        if identity.config_hash(changed) == before:
            same.add(path)
        assert bool(identity.differences(changed, resolved)) == (path not in NEUTRAL), path
    assert same == set(NEUTRAL)


def test_a_run_from_before_a_field_is_the_same_run_with_the_value_it_then_had(resolved):
    """A record that is committed, whose configuration knows neither seeds nor a cache."""
    folder = pathlib.Path(__file__).parents[1] / "experiments" / "results" / "cifar10-resnet20-resnet8-3ep"
    old = json.loads((folder / "config.json").read_text())
    assert "seeds" not in old
    assert identity.config_hash(old) == json.loads((folder / "summary.json").read_text())["config_hash"]
    now = {**old, "seeds": [], "seeds_share_batches": False, "batch_seed": None}
    assert identity.differences(now, old) == []
    assert identity.differences({**now, "seeds": [0, 1]}, old) == ["seeds: None -> [0, 1]"]
    assert now["checkpoint_every"] == 1  # which leaves the same behind as
    assert identity.differences({**now, "checkpoint_every": "auto"}, old) == []
    assert identity.differences({**now, "checkpoint_every": 2}, old) == ["checkpoint_every: 1 -> 2"]


def test_the_hash_does_not_depend_on_the_order_of_fields(resolved):
    turned = dict(reversed(list(resolved.items())))
    assert identity.config_hash(turned) == identity.config_hash(resolved)
    # nor on having been through a file
    assert identity.config_hash(json.loads(json.dumps(resolved))) == identity.config_hash(resolved)


def test_differences_are_named(resolved):
    assert identity.differences(resolved, resolved) == []
    changed = _with(_with(resolved, "seed", 3), "objective.terms.kd.weight", 2.0)
    assert identity.differences(changed, resolved) == ["objective.terms.kd.weight: 1.0 -> 2.0", "seed: 0 -> 3"]
    lacking = copy.deepcopy(resolved)
    del lacking["objective"]["terms"]["kd"]["temperature"]
    assert identity.differences(lacking, resolved) == ["objective.terms.kd.temperature: 4.0 -> None"]


@pytest.mark.parametrize("path", ["seed", "data.source", "objective.terms", "teacher.optimizer.drops"])
def test_a_field_that_is_there_may_be_overridden(path):
    assert config.override_error(config.default(), path) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sed", r"unknown configuration field 'sed' \(did you mean 'seed'\?\); the configuration has: "),
        ("studnt.model", r"unknown configuration field 'studnt.model' \(did you mean 'student'\?\)"),
        ("optimizer.momentun", r"\(did you mean 'momentum'\?\); optimizer has: "),
        ("objective.terms.kd.weight", r"unknown configuration field 'objective.terms.kd.weight'"),
        ("student.model.depth", "student.model has no fields below it"),
    ],
)
def test_a_field_that_is_not_there(path, message):
    error = config.override_error(config.default(), path)
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=message):
        raise error


def test_resolve_names_the_network():
    for role in ("teacher", "student"):
        with pytest.raises(UserError, match=rf"^{role}.model: unknown model 'resnet57' \(did you mean 'resnet56'\?\)"):
            resolve(_broken(f"{role}.model", "resnet57"))
    with pytest.raises(UserError, match="student.model: unknown model 'none'"):
        resolve(_broken("student.model", "none"))


def test_a_run_without_a_teacher():
    c = config.default()
    c.objective.terms.kd = objective.block("kd", weight=0.0)
    c.teacher.model = "none"
    assert resolve(c)["teacher"]["model"] == "none"
    c.objective.terms.kd.weight = 0.5
    with pytest.raises(UserError, match="teacher.model is 'none', but objective.terms.kd has a weight and needs a tea"):
        resolve(c)
    c.objective.terms.kd.weight = 0.0
    c.teacher.checkpoint = "runs/teacher"
    with pytest.raises(UserError, match="teacher.checkpoint is given, but teacher.model is 'none'"):
        resolve(c)


def test_resolving_keeps_what_is_used_alone(resolved):
    assert resolved["objective"]["terms"]["kd"] == {
        "term": "kd",
        "weight": 1.0,
        "every": 1,
        "view": "weak",
        "balance": False,
        "schedule": {"name": "gompertz", "peak_value": 1.0, "inflection": 0.3, "rate": 10.0},
        "temperature": 4.0,
        "standardize": False,
    }
    assert "schedule" not in resolved["objective"]  # of the mode "convex"
    assert json.loads(json.dumps(resolved)) == resolved
    assert np.isfinite(resolved["optimizer"]["learning_rate"])
