"""Every method is a configuration of the objective: the published one, or the same under a Gompertz weight."""

import json
import pathlib

import pytest

from gkd_jax import command, config, objective, recipes
from gkd_jax.errors import UserError
from gkd_jax.recipes import published
from gkd_jax.training.resolve import resolve

CIFAR = pathlib.Path(__file__).parents[2] / "configs" / "cifar.py"
METHODS = {
    *("alone", "label_smoothing", "kd", "dkd", "kd_ls", "dkd_ls", "dist", "ctkd", "wkd_l", "wkd_f", "wkd_lf", "fitnet"),
    *("at", "vid", "nst", "reviewkd", "ofd", "simkd", "sp", "rkd", "pkt", "cc", "crd", "input_grad", "feature_grad"),
    *("classifier_grad", "jacobian", "sobolev", "lwm", "mlkd", "mlkd_ls", "gompertz_kd", "gompertz_cnn"),
}
UNTAUGHT = {"alone", "label_smoothing"}


def _resolved(method, pair="resnet56,resnet20", dataset="cifar100"):
    given = command.parse(["gkd_jax", f"--config={CIFAR}:{pair},{dataset},{method}"])
    return resolve(given.config)


def test_the_methods():
    assert set(recipes.names()) == METHODS


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_is_a_configuration(method):
    resolved = _resolved(method)
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["recipe"] == method
    assert (resolved["teacher"]["model"] == config.NO_TEACHER) == (method in UNTAUGHT)
    assert recipes.source(method).endswith(".")
    lines = objective.build(resolved["objective"], 2400, config.steps_of(10, 240))
    assert set(resolved["objective"]["terms"]) <= set(lines)


@pytest.mark.parametrize("method", sorted(METHODS - UNTAUGHT))
def test_any_method_takes_gompertz_weights(method):
    plain, grown = _resolved(method), _resolved(f"{method}+gompertz")
    for label, line in grown["objective"]["terms"].items():
        before = plain["objective"]["terms"][label]
        rise = {"name": "gompertz", "peak_value": 1.0, "inflection": 0.3, "rate": 10.0}
        assert line["schedule"] == (before["schedule"] if line["term"] == "ce" else rise)
        assert {**line, "schedule": None} == {**before, "schedule": None}
    assert grown["objective"]["ce"] == plain["objective"]["ce"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dkdd", "unknown method 'dkdd' .did you mean 'dkd'"),
        ("kd+linear", "behind the . of a method stands 'gompertz', not 'linear'"),
        ("alone+gompertz", "the method 'alone' has nothing but cross-entropy"),
    ],
)
def test_mistakes_are_named(method, message):
    with pytest.raises(UserError, match=message):
        _resolved(method)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("pair", published.pairs(), ids=",".join)
def test_the_standard_pairs(pair, dataset):
    resolved = _resolved("kd", ",".join(pair), dataset)
    assert (resolved["teacher"]["model"], resolved["student"]["model"]) == pair
    light = pair[1].startswith(("mobile", "shuffle"))
    assert resolved["optimizer"]["learning_rate"] == (0.01 if light else 0.05)
    assert (resolved["epochs"], resolved["batch_size"]) == (240, 64)


def _line(method, pair, label):
    resolved = _resolved(method, pair)["objective"]
    return resolved["ce"]["weight"], resolved["terms"][label]


# As the published configurations have them, read again
@pytest.mark.parametrize(
    ("method", "pair", "label", "ce", "expected"),
    [
        ("kd", "vgg13,vgg8", "kd", 0.1, {"weight": 0.9, "temperature": 4.0, "standardize": False}),
        ("dkd", "resnet32x4,resnet8x4", "dkd", 1.0, {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
        ("dkd", "wrn_40_2,wrn_16_2", "dkd", 1.0, {"beta": 6.0}),
        ("dkd", "resnet56,resnet20", "dkd", 1.0, {"beta": 2.0}),
        ("kd_ls", "resnet32x4,resnet8x4", "kd", 0.1, {"weight": 9.0, "temperature": 2.0, "standardize": True}),
        ("kd_ls", "resnet50,mobilenetv2_half", "kd", 0.1, {"weight": 1.0, "temperature": 3.0}),
        ("dkd_ls", "vgg13,vgg8", "dkd", 1.0, {"weight": 15.0, "alpha": 1.0, "beta": 2.0, "temperature": 2.0}),
        ("dist", "vgg13,vgg8", "dist", 1.0, {"weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0}),
        ("ctkd", "resnet56,resnet20", "ctkd", 0.1, {"weight": 0.9, "low": 1.0, "span": 20.0}),
        ("wkd_l", "resnet32x4,resnet8x4", "wkd_l", 1.0, {"weight": 600.0, "temperature": 8.0, "epsilon": 0.05}),
        ("wkd_l", "wrn_40_2,shufflenetv1", "wkd_l", 1.0, {"weight": 200.0, "temperature": 6.0}),
        ("wkd_lf", "wrn_40_2,shufflenetv1", "wkd_f", 1.0, {"weight": 0.5, "ratio": 3.0, "grid": 4}),
        ("wkd_f", "resnet32x4,resnet8x4", "wkd_f", 1.0, {"weight": 0.08, "ratio": 4.0, "grid": 1}),
        ("fitnet", "vgg13,vgg8", "fitnet", 1.0, {"weight": 100.0, "stage": 2}),
        ("at", "vgg13,vgg8", "at", 1.0, {"weight": 1000.0}),
        ("nst", "vgg13,vgg8", "nst", 1.0, {"weight": 50.0}),
        ("vid", "vgg13,vgg8", "vid", 1.0, {"weight": 1.0}),
        ("reviewkd", "resnet56,resnet20", "reviewkd", 1.0, {"weight": 0.6}),
        ("reviewkd", "resnet32x4,resnet8x4", "reviewkd", 1.0, {"weight": 5.0}),
        ("reviewkd", "resnet50,mobilenetv2_half", "reviewkd", 1.0, {"weight": 30.0}),
        ("ofd", "vgg13,vgg8", "ofd", 1.0, {"weight": 0.001}),
        ("simkd", "resnet32x4,resnet8x4", "simkd", 0.0, {"weight": 1.0}),
        ("sp", "vgg13,vgg8", "sp", 1.0, {"weight": 3000.0}),
        ("rkd", "vgg13,vgg8", "rkd", 1.0, {"weight": 1.0, "distance": 25.0, "angle": 50.0}),
        ("pkt", "vgg13,vgg8", "pkt", 1.0, {"weight": 30000.0}),
        ("cc", "vgg13,vgg8", "cc", 1.0, {"weight": 0.02}),
        ("crd", "vgg13,vgg8", "crd", 1.0, {"weight": 0.8, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}),
        ("mlkd", "vgg13,vgg8", "mlkd_weak", 0.1, {"weight": 0.9, "temperature": 4.0, "view": "weak"}),
        ("mlkd_ls", "vgg13,vgg8", "mlkd_strong", 0.1, {"weight": 6.0, "temperature": 2.0, "view": "strong"}),
        ("mlkd_ls", "resnet56,resnet20", "mlkd_strong", 0.1, {"weight": 9.0}),
    ],
)
def test_published_settings(method, pair, label, ce, expected):
    weight, line = _line(method, pair, label)
    assert weight == ce
    assert {name: line[name] for name in expected} == expected


def test_a_warm_up_takes_twenty_epochs():
    lines = objective.build(_resolved("dkd")["objective"], 240 * 10, config.steps_of(10, 240))
    found = objective.weights_along(lines, [0.0, 10 / 240, 20 / 240, 1.0], 2400)["dkd"]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=1e-6)


def test_wkd_decays_from_epoch_150_but_not_in_the_target_class():
    lines = objective.build(_resolved("wkd_l")["objective"], 240 * 10, config.steps_of(10, 240))
    found = objective.weights_along(lines, [0.0, 150 / 240, 195 / 240, 1.0], 2400)
    assert found["wkd_l"] == pytest.approx([600.0, 600.0, 300.0, 0.0], abs=1e-3)
    assert found["wkd_l_target"] == pytest.approx([1.0] * 4)


def test_a_student_that_reuses_the_classifier():
    assert _resolved("simkd")["student"]["reuse_classifier"]
    assert not _resolved("kd")["student"]["reuse_classifier"]
