import json
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gkd_jax import config, identity, objective, schedules
from gkd_jax.errors import UserError
from gkd_jax.losses import term as terms
from gkd_jax.losses.term import Term
from gkd_jax.objective import Line
from gkd_jax.outputs import Batch, Gradient, Outputs, Setup

TOTAL = 100  # steps of the run: 10 epochs of 10


def _steps(duration):
    return config.steps_in(duration, 10, TOTAL)


def _batch(step=0):
    rows = jnp.arange(4)
    return Batch({"weak": jnp.zeros((4, 2, 2, 1))}, rows % 2, jax.nn.one_hot(rows % 2, 2), rows, rows, jnp.int32(step))


def _outputs(fill):
    return Outputs(logits=jnp.full((4, 2), fill, jnp.float32))


def _fake(name, values, *, needs=frozenset()):
    """A term whose value is known, and whose state counts its calls."""

    def loss(heads, state, student, teacher, batch, key):
        return jnp.asarray(values) * heads["scale"], state + 1

    return Term(name, loss, frozenset(needs), lambda key, student, teacher, setup: ({"scale": 1.0}, jnp.int32(0)))


def _total(lines, step=0, teacher=True):
    heads = {name: {"scale": jnp.float32(1.0)} for name in lines}
    states = {name: jnp.int32(0) for name in lines} | {"sleeping": jnp.int32(7)}
    weights = {name: line.weight.init for name, line in lines.items()}
    views = sorted({line.view for line in lines.values()})
    taught = {view: _outputs(1.0) for view in views} if teacher else {}
    return objective.total(
        lines,
        heads,
        states,
        weights,
        dict.fromkeys(lines, ()),
        {view: _outputs(0.0) for view in views},
        taught,
        _batch(step),
        jax.random.key(0),
    )


# ------------------------------------------------------------------------------------------------ the sum


def test_the_total_is_the_weighted_sum_of_means():
    lines = {
        "a": Line(_fake("a", [1.0, 2.0, 3.0, 6.0]), schedules.fixed(schedules.constant(0.5))),
        "b": Line(_fake("b", 10.0), schedules.fixed(schedules.linear(0.0, 1.0, TOTAL)), every=5),
    }
    loss, (readings, states) = jax.jit(lambda step: _total(lines, step))(jnp.int32(20))
    # 0.5 * 3 + 5 * 0.2 * 10
    np.testing.assert_allclose(loss, 11.5, rtol=1e-6)
    assert loss.dtype == jnp.float32
    assert {name: float(reading.value) for name, reading in readings.items()} == {"a": 3.0, "b": 10.0}
    np.testing.assert_allclose([readings["a"].weight, readings["b"].weight], [0.5, 0.2], rtol=1e-6)
    assert {name: int(state) for name, state in states.items()} == {"a": 1, "b": 1, "sleeping": 7}


def test_losses_are_summed_in_float32_whatever_they_come_in():
    values = jnp.full((4,), 300.0, jnp.bfloat16)
    lines = {"a": Line(_fake("a", values), schedules.fixed(schedules.constant(1.0)))}
    loss, (readings, _) = _total(lines)
    assert loss.dtype == readings["a"].value.dtype == readings["a"].weight.dtype == jnp.float32
    assert float(loss) == 300.0


def test_a_weight_with_parameters_of_its_own():
    grown = schedules.Weight(jnp.float32(3.0), lambda params, step: params * 0.5)
    loss, _ = _total({"a": Line(_fake("a", 2.0), grown)})
    assert float(loss) == 3.0


def test_lines_read_their_own_view_and_draw_their_own_key():
    seen = {}

    def term(name):
        def loss(heads, state, student, teacher, batch, key):
            seen[name] = (float(student.logits[0, 0]), teacher, jax.random.key_data(key).tolist())
            return student.logits[:, 0], state

        return Term(name, loss)

    lines = {
        "a": Line(term("a"), schedules.fixed(schedules.constant(1.0))),
        "b": Line(term("b"), schedules.fixed(schedules.constant(1.0)), view="strong"),
    }
    student = {"weak": _outputs(0.25), "strong": _outputs(0.75)}
    empty = {"a": (), "b": ()}
    loss, _ = objective.total(lines, empty, empty, empty, empty, student, {}, _batch(), jax.random.key(3))
    assert float(loss) == 1.0
    assert [seen["a"][0], seen["b"][0]] == [0.25, 0.75]
    assert seen["a"][1] is None
    assert seen["a"][2] != seen["b"][2]


def _drawing(name):
    """A term whose head and whose value are what it draws."""

    def loss(heads, state, student, teacher, batch, key):
        return jax.random.uniform(key), state

    def init(key, student, teacher, setup):
        return {"drawn": jax.random.uniform(key)}, ()

    return Line(Term(name, loss, init=init), schedules.fixed(schedules.constant(1.0)))


ABLATIONS = [("other", "line"), ("line", "other"), ("ce", "other", "more", "line")]


@pytest.mark.parametrize("names", ABLATIONS, ids="-".join)
def test_a_line_begins_alike_whatever_other_lines_there_are(key, names):
    def heads(names):
        lines = {name: _drawing(name) for name in names}
        found, _ = objective.init(key, lines, _outputs(0.0), None, Setup(2, 4, 1))
        return {name: float(head["drawn"]) for name, head in found.items()}

    alone, together = heads(("line",)), heads(names)
    assert together["line"] == alone["line"]
    assert len(set(together.values())) == len(names)


@pytest.mark.parametrize("names", ABLATIONS, ids="-".join)
def test_a_line_draws_alike_whatever_other_lines_there_are(key, names):
    def values(names):
        empty = dict.fromkeys(names, ())
        lines = {name: _drawing(name) for name in names}
        _, (readings, _) = objective.total(
            lines, empty, empty, empty, empty, {"weak": _outputs(0.0)}, {}, _batch(), jax.random.key(3)
        )
        return {name: float(reading.value) for name, reading in readings.items()}

    alone, together = values(("line",)), values(names)
    assert together["line"] == alone["line"]
    assert len(set(together.values())) == len(names)


def test_each_gradient_is_computed_once():
    def need(name, at="input"):
        return Gradient(name, at, lambda logits, teacher, batch, key: logits)

    lines = {
        "a": Line(
            _fake("a", 1.0, needs={need("ce@input"), "teacher.logits"}), schedules.fixed(schedules.constant(1.0))
        ),
        "b": Line(_fake("b", 1.0, needs={need("ce@input")}), schedules.fixed(schedules.constant(1.0))),
        "c": Line(
            _fake("c", 1.0, needs={need("ce@feature:-2", "feature:-2")}), schedules.fixed(schedules.constant(1.0))
        ),
        "d": Line(_fake("d", 1.0), schedules.fixed(schedules.constant(1.0))),
    }
    assert sorted(gradient.name for gradient in objective.gradients(lines)) == ["ce@feature:-2", "ce@input"]
    assert [objective.needs_teacher(line) for line in lines.values()] == [True, True, True, False]


def test_lines_that_are_computed_at_some_steps_only():
    weight = schedules.fixed(schedules.constant(1.0))
    lines = {
        name: Line(_fake(name, 1.0), weight, every=every)
        for name, every in {"ce": 1, "kd": 2, "wasserstein": 3}.items()
    }
    found = {step: list(objective.active(lines, step)) for step in range(7)}
    assert found == {
        0: ["ce", "kd", "wasserstein"],
        1: ["ce"],
        2: ["ce", "kd"],
        3: ["ce", "wasserstein"],
        4: ["ce", "kd"],
        5: ["ce"],
        6: ["ce", "kd", "wasserstein"],
    }


def test_a_line_that_does_not_suit_the_networks_is_named():
    block = objective.resolve(_given(wasserstein=objective.block("wasserstein", kind="gaussian", stage=7)))
    lines = objective.build(block, TOTAL, _steps)
    outputs = Outputs(jnp.zeros((4, 2)), jnp.zeros((4, 3)), features=(jnp.zeros((4, 2, 2, 3)),) * 2)
    with pytest.raises(UserError, match="objective.terms.wasserstein: stage is 7, but the network has 2 features"):
        objective.init(jax.random.key(0), lines, outputs, outputs, Setup(2, 4, 1))


# ------------------------------------------------------------------------------- from a configuration


@pytest.fixture(scope="module", autouse=True)
def _terms_of_this_test():
    """A plain term with options, and one that must never be traced."""
    before = dict(terms._FACTORIES)

    @terms.register("distance", needs={"teacher.logits"})
    def distance(student, teacher, *, power: float = 2.0, signed: bool = False, name_of: str = "l"):
        return jnp.abs(student.logits - teacher.logits).sum(-1) ** power

    @terms.register("never", needs={"teacher.logits"})
    def never(student, teacher):
        raise AssertionError("a line without weight was traced")

    yield
    terms._FACTORIES.clear()
    terms._FACTORIES.update(before)


def _given(mode="sum", ce=None, schedule=None, **blocks):
    return {
        "mode": mode,
        "ce": ml_collections.ConfigDict({"weight": 1.0, "schedule": config.schedule()}) if ce is None else ce,
        "schedule": config.schedule("gompertz", peak_value=0.9) if schedule is None else schedule,
        "terms": ml_collections.ConfigDict(blocks),
    }


def _built(**given):
    return objective.build(objective.resolve(_given(**given)), TOTAL, _steps)


def test_a_label_may_differ_from_its_term():
    block = objective.block("distance", weight=3.0, every=2, power=1.0)
    lines = _built(near=block, distance=ml_collections.ConfigDict({"weight": 1.0}))
    assert list(lines) == ["ce", "near", "distance"] or list(lines) == ["ce", "distance", "near"]
    assert lines["near"].term.name == lines["distance"].term.name == "distance"
    assert (lines["near"].every, lines["distance"].every) == (2, 1)
    student, teacher = _outputs(0.0), _outputs(2.0)
    near, _ = lines["near"].term.loss({}, (), student, teacher, _batch(), jax.random.key(0))
    far, _ = lines["distance"].term.loss({}, (), student, teacher, _batch(), jax.random.key(0))
    np.testing.assert_allclose(near, [4.0] * 4)  # |0 - 2| twice
    np.testing.assert_allclose(far, [16.0] * 4)


def test_lines_of_no_weight_are_not_traced():
    rise = config.schedule("step", begin="100%")  # 1 only after the last step
    lines = _built(
        never=objective.block("never", weight=0.0),
        late=objective.block("never", schedule=rise),
        zero=objective.block("never", schedule=config.schedule("constant", value=0.0)),
        flat=objective.block("never", schedule=config.schedule("gompertz", peak_value=0.0)),
        distance=objective.block("distance"),
    )
    assert list(lines) == ["ce", "distance"]
    empty = dict.fromkeys(lines, ())
    views = {"weak": _outputs(0.0)}, {"weak": _outputs(2.0)}
    loss, _ = jax.jit(lambda: objective.total(lines, empty, empty, empty, empty, *views, _batch(), jax.random.key(0)))()
    np.testing.assert_allclose(loss, math.log(2) + 16.0, rtol=1e-6)


def test_a_line_whose_weight_is_zero_for_a_while_is_kept():
    late = config.schedule("step", begin="99%")
    early = config.schedule("linear", init_value=1.0, end_value=0.0, end="2%")
    lines = _built(late=objective.block("distance", schedule=late), early=objective.block("distance", schedule=early))
    assert set(lines) == {"ce", "late", "early"}
    found = objective.weights_along(lines, [0.0, 0.5, 0.99, 1.0], TOTAL)
    assert found == {"ce": [1.0] * 4, "late": [0.0, 0.0, 1.0, 1.0], "early": [1.0, 0.0, 0.0, 0.0]}


def test_cross_entropy_can_be_switched_off():
    lines = _built(
        ce=ml_collections.ConfigDict({"weight": 0.0, "schedule": config.schedule()}),
        distance=objective.block("distance"),
    )
    assert list(lines) == ["distance"]


def test_weights_along_a_run():
    rise = config.schedule("gompertz", peak_value=0.8, inflection=0.25, rate=8.0)
    lines = _built(distance=objective.block("distance", weight=2.5, schedule=rise))
    fractions = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = objective.weights_along(lines, fractions, TOTAL)
    np.testing.assert_allclose(found["ce"], [1.0] * 5)
    expected = [2.5 * 0.8 * math.exp(-math.exp(-8 * (t - 0.25))) for t in fractions]
    np.testing.assert_allclose(found["distance"], expected, rtol=1e-5)
    bend = math.log((3 + math.sqrt(5)) / 2) / 8
    np.testing.assert_allclose(lines["distance"].weight.bounds(()), (0.25 - bend, 0.25 + bend))
    assert lines["ce"].weight.bounds(()) is None


def test_convex_weights():
    lines = _built(
        mode="convex",
        schedule=config.schedule("gompertz", peak_value=0.9, inflection=0.5, rate=6.0),
        distance=objective.block("distance", weight=2.0),
        other=objective.block("distance", weight=0.5, every=3),
    )
    fractions = [0.0, 0.2, 0.5, 1.0]
    grown = np.array([0.9 * math.exp(-math.exp(-6 * (t - 0.5))) for t in fractions])
    found = objective.weights_along(lines, fractions, TOTAL)
    np.testing.assert_allclose(found["ce"], 1 - grown, rtol=1e-5)
    np.testing.assert_allclose(found["distance"], 2.0 * grown, rtol=1e-5)
    np.testing.assert_allclose(found["other"], 0.5 * grown, rtol=1e-5)


def test_convex_weights_at_the_ends_of_the_range():
    for peak, expected in ((0.0, ["ce"]), (1.0, ["ce", "distance"])):
        schedule = config.schedule("gompertz", peak_value=peak)
        assert list(_built(mode="convex", schedule=schedule, distance=objective.block("distance"))) == expected
    # All for the terms, from the first step on: cross-entropy is gone
    everything = config.schedule("constant", value=1.0)
    assert list(_built(mode="convex", schedule=everything, distance=objective.block("distance"))) == ["distance"]


def test_options_reach_the_record_with_their_defaults():
    resolved = objective.resolve(_given(distance=ml_collections.ConfigDict({"power": 1.5})))
    assert resolved["terms"]["distance"] == {
        "term": "distance",
        "weight": 1.0,
        "every": 1,
        "view": "weak",
        "balance": False,
        "schedule": {"name": "constant", "value": 1.0},
        "power": 1.5,
        "signed": False,
        "name_of": "l",
    }
    again = objective.resolve({**resolved, "schedule": None})
    assert again == resolved  # a record can be run


@pytest.mark.parametrize("written", [objective.block, lambda name, **given: ml_collections.ConfigDict(given)])
def test_a_whole_number_is_the_same_run_as_its_float(written):
    def resolved(power):
        return objective.resolve(_given(distance=written("distance", power=power)))

    # Not by ==, to which 4 is 4.0
    assert json.dumps(resolved(4)) == json.dumps(resolved(4.0))
    whole, same, other = (identity.config_hash(resolved(power)) for power in (4, 4.0, 4.5))
    assert whole == same != other


def _line(**fields):
    return ml_collections.ConfigDict({"term": "distance", **fields})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "concave"}, "^objective.mode must be 'sum' or 'convex', not 'concave'$"),
        ({"d": _line(weight=-1.0)}, "^objective.terms.d.weight must be a finite number, 0 or above, not -1.0"),
        ({"d": _line(weight=math.nan)}, "^objective.terms.d.weight must be a finite number, 0 or above, not nan"),
        ({"d": _line(weight=math.inf)}, "^objective.terms.d.weight must be a finite number"),
        ({"d": _line(weight="1")}, "^objective.terms.d.weight must be of type float or int, not '1'"),
        ({"d": _line(weight=True)}, "^objective.terms.d.weight must be of type float or int, not True"),
        ({"d": _line(every=0)}, "^objective.terms.d.every must be 1 or above, not 0"),
        ({"d": _line(every=1.5)}, "^objective.terms.d.every must be of type int, not 1.5"),
        ({"d": 3}, "^objective.terms.d must hold fields, not 3"),
        ({"distence": ml_collections.ConfigDict()}, "unknown term 'distence' .did you mean 'distance'.{2}; known: "),
        ({"d": ml_collections.ConfigDict({"term": "disst"})}, "^objective.terms.d: unknown term 'disst'"),
        ({"d": _line(term=3)}, "^objective.terms.d.term must be of type str, not 3"),
        (
            {"d": _line(powr=2.0)},
            "^objective.terms.d: .* no option 'powr' .did you mean 'power'.{2}; its options: power",
        ),
        ({"d": _line(power="2")}, "^objective.terms.d: power must be of type float or int, not '2'"),
        ({"d": _line(power=math.nan)}, "^objective.terms.d: power must be a finite number, not nan"),
        ({"d": _line(signed=1)}, "^objective.terms.d: signed must be of type bool, not 1"),
        ({"d": _line(name_of=1)}, "^objective.terms.d: name_of must be of type str, not 1"),
        (
            {"kd": ml_collections.ConfigDict({"temperature": 0.0})},
            "^objective.terms.kd: .*temperature is 0.0; allowed: ",
        ),
        (
            {"ce": ml_collections.ConfigDict({"label_smoothing": 1.0})},
            "^objective.ce: .*label_smoothing is 1.0; allowed",
        ),
        ({"d": _line(schedule="gompertz")}, "^objective.terms.d.schedule must hold fields, not 'gompertz'"),
        (
            {"d": _line(schedule=ml_collections.ConfigDict({"name": "gomperz"}))},
            "^objective.terms.d.schedule: unknown schedule 'gomperz' .did you mean 'gompertz'.{2}",
        ),
        (
            {"d": _line(schedule=ml_collections.ConfigDict({"rate": 3.0}))},
            "^objective.terms.d.schedule.name must be one of constant, cosine, gompertz, .*, not None",
        ),
        (
            {"d": _line(schedule=config.schedule("gompertz", rate=-1.0))},
            "^objective.terms.d.schedule: schedule 'gompertz': rate must be a finite number above 0, not -1.0",
        ),
        (
            {"d": _line(schedule=config.schedule("gompertz", peak_value=-1.0))},
            "^objective.terms.d.schedule.peak_value must be 0 or above, not -1.0",
        ),
        (
            {"d": _line(schedule=config.schedule("linear", begin="soon"))},
            "^objective.terms.d.schedule: a duration is .* not 'soon'",
        ),
        (
            {"mode": "convex", "schedule": config.schedule("gompertz", peak_value=1.1)},
            "^objective.schedule.peak_value must lie between 0 and 1 in the mode 'convex', not 1.1",
        ),
        (
            {"mode": "convex", "schedule": config.schedule("gompertz", peak_value=-0.1)},
            "^objective.schedule.peak_value must be 0 or above, not -0.1",
        ),
        (
            {"mode": "convex", "schedule": config.schedule("linear", end_value=2.0)},
            "^objective.schedule.end_value must lie between 0 and 1",
        ),
        (
            {"mode": "convex", "d": _line(schedule=config.schedule("gompertz"))},
            "^objective.terms.d.schedule must be 'constant' with the value 1 in the mode 'convex', where objective",
        ),
        (
            {"mode": "convex", "d": _line(schedule=config.schedule("constant", value=2.0))},
            "^objective.terms.d.schedule must be 'constant' with the value 1 in the mode 'convex'",
        ),
        (
            {"mode": "convex", "ce": ml_collections.ConfigDict({"weight": 0.5})},
            "^objective.ce.weight must be 1 in the mode 'convex', whose schedule sets it, not 0.5",
        ),
    ],
)
def test_what_is_no_objective(given, message):
    with pytest.raises(UserError, match=message):
        objective.resolve(_given(**given))


def test_cross_entropy_is_no_term():
    given = _given()
    given["terms"]["ce"] = ml_collections.ConfigDict({"weight": 1.0})
    with pytest.raises(UserError, match="^objective.terms.ce: cross-entropy stands under objective.ce$"):
        objective.resolve(given)


def test_an_objective_of_nothing():
    off = ml_collections.ConfigDict({"weight": 0.0})
    with pytest.raises(UserError, match="^objective: every weight is 0, there is nothing to learn from$"):
        _built(ce=off, distance=objective.block("distance", weight=0.0))
    with pytest.raises(UserError, match="^objective: some steps have no line at all; one line must have every = 1$"):
        _built(ce=off, distance=objective.block("distance", every=2))


def test_durations_that_the_run_turns_around():
    schedule = config.schedule("linear", begin="8ep", end="50%")
    resolved = objective.resolve(_given(distance=objective.block("distance", schedule=schedule)))
    message = (
        "^objective.terms.distance.schedule: schedule 'linear': end must come after begin, but .* steps 50 and 80$"
    )
    with pytest.raises(UserError, match=message):
        objective.build(resolved, TOTAL, _steps)


def test_a_block_lists_every_option_and_refuses_others():
    block = objective.block("distance", weight=2, power=3.0)
    assert {k: v for k, v in block.items() if k != "schedule"} == {
        "term": "distance",
        "weight": 2.0,
        "every": 1,
        "view": "weak",
        "balance": False,
        "power": 3.0,
        "signed": False,
        "name_of": "l",
    }
    with pytest.raises(UserError, match="no option 'pwer' .did you mean 'power'"):
        objective.block("distance", pwer=3.0)
    with pytest.raises(UserError, match="unknown term 'distanc' .did you mean 'distance'"):
        objective.block("distanc")


# ------------------------------------------------------------------------------------------------ constants, balance


def test_constants_reach_their_own_term():
    def loss(heads, state, student, teacher, batch, key):
        return batch.constants * jnp.ones(4), state

    def line(factor):
        term = Term("constant", loss, constants=lambda setup: jnp.float32(factor * setup.num_classes))
        return Line(term, schedules.fixed(lambda count: 1.0))

    lines = {"one": line(1.0), "two": line(10.0)}
    known = objective.constants(lines, Setup(num_classes=3, num_examples=4, steps_per_epoch=1))
    assert known == {"one": 3.0, "two": 30.0}
    empty = dict.fromkeys(lines, ())
    outputs = {"weak": _outputs(0.0)}
    _, (readings, _) = objective.total(lines, empty, empty, empty, known, outputs, {}, _batch(), jax.random.key(0))
    assert {name: float(reading.value) for name, reading in readings.items()} == {"one": 3.0, "two": 30.0}


def test_a_term_whose_constants_do_not_suit_is_named():
    def refuse(setup):
        raise UserError("no classifier")

    lines = {"odd": Line(Term("odd", lambda *given: (0, ()), constants=refuse), schedules.fixed(lambda count: 1.0))}
    with pytest.raises(UserError, match=r"^objective\.terms\.odd: no classifier$"):
        objective.constants(lines, Setup(num_classes=3, num_examples=4, steps_per_epoch=1))


def test_an_option_may_be_a_schedule():
    cooling = config.schedule("linear", init_value=8.0, end_value=2.0, begin="0%", end="50%")
    resolved = objective.resolve(_given(kd=objective.block("kd", temperature=cooling)))
    assert resolved["terms"]["kd"]["temperature"]["name"] == "linear"
    assert objective.resolve({**resolved, "schedule": None}) == resolved
    lines = objective.build(resolved, TOTAL, _steps)
    student, teacher = Outputs(jnp.array([[1.0, 0, -2, 0]] * 4)), Outputs(jnp.array([[0.0, 3, 1, 0]] * 4))
    for step, temperature in ((0, 8.0), (25, 5.0), (50, 2.0), (99, 2.0)):
        found, _ = lines["kd"].term.loss({}, (), student, teacher, _batch(step), jax.random.key(0))
        softened = [np.exp(np.asarray(o.logits[0], np.float64) / temperature) for o in (teacher, student)]
        p, q = (x / x.sum() for x in softened)
        np.testing.assert_allclose(found, temperature**2 * np.sum(p * np.log(p / q)), rtol=1e-5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"temperature": {"name": "liner"}}, r"^objective\.terms\.kd\.temperature: .*'liner'.*linear"),
        ({"temperature": {"name": "constant", "value": -1.0}}, r"^objective\.terms\.kd\.temperature\.value must be 0"),
        ({"view": "side"}, r"^objective\.terms\.kd\.view must be one of weak, strong, not 'side'"),
        ({"balance": 1.0}, r"^objective\.terms\.kd\.balance must be of type bool"),
    ],
)
def test_what_a_line_cannot_be_is_said(written, message):
    with pytest.raises(UserError, match=message):
        objective.resolve(_given(kd=ml_collections.ConfigDict(written)))


@pytest.mark.parametrize(
    ("term", "option", "allowed"),
    [
        ("wasserstein", "epsilon", "temperature"),
        ("kd", "standardize", "temperature"),
        ("dkd", "alpha", "temperature"),
        ("crd", "temperature", "none"),
    ],
)
def test_an_option_that_cannot_be_a_schedule_is_said(term, option, allowed):
    message = f"{option} of the term '{term}' takes no schedule; these do: {allowed}$"
    written = {option: {"name": "constant", "value": 1.0}}
    with pytest.raises(UserError, match=rf"^objective\.terms\.{term}: {message}"):
        objective.resolve(_given(**{term: ml_collections.ConfigDict(written)}))
    with pytest.raises(UserError, match=rf"^{message}"):
        objective.block(term, **{option: config.schedule("constant", value=1.0)})


@pytest.mark.parametrize("schedule", [{"name": "linear", "end": "50%"}, {"name": "constant", "value": 0.0}])
def test_a_temperature_stays_above_zero(schedule):
    resolved = objective.resolve(_given(kd=ml_collections.ConfigDict({"temperature": schedule})))
    with pytest.raises(UserError, match=r"^objective\.terms\.kd: temperature is not above 0 over the whole run"):
        objective.build(resolved, TOTAL, _steps)


def test_a_line_is_balanced_on_demand():
    lines = _built(kd=objective.block("kd", balance=True), plain=objective.block("kd"))
    given = jax.random.key(0), _outputs(0.0), _outputs(0.0), Setup(num_classes=2, num_examples=4, steps_per_epoch=1)
    assert set(lines["kd"].term.init(*given)[1]) == {"inner", "own", "ce"}
    assert lines["plain"].term.init(*given)[1] == ()
