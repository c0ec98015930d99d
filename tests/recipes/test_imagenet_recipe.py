"""The recipe on ImageNet: the published settings, from mdistiller's configs/imagenet."""

import pytest

from gkd_jax import config, models, objective, recipes
from gkd_jax.errors import UserError
from gkd_jax.recipes import on_imagenet


@pytest.mark.parametrize("pair", [("resnet34", "resnet18"), ("resnet50", "mobilenetv1")])
@pytest.mark.parametrize("method", [*on_imagenet.METHODS, "kd+gompertz", "dkd+gompertz"])
def test_every_method_is_a_whole_configuration(pair, method):
    c = recipes.imagenet(*pair, method)
    config.check(c)
    objective.resolve(c.objective.to_dict())
    assert c.recipe == method
    assert c.student.model in models.names()
    assert c.student.model == (f"{pair[1]}_imagenet_stem" if pair[1] == "resnet18" else "mobilenetv1")
    assert c.teacher.model in (f"{pair[0]}_imagenet_stem", "none")


def test_the_training_is_the_published_one():
    c = recipes.imagenet("resnet34", "resnet18", "kd")
    for part in (c, c.teacher):
        given = part.optimizer
        assert (part.epochs, part.batch_size, given.learning_rate, given.momentum) == (100, 256, 0.1, 0.9)
        assert (given.weight_decay, given.factor, given.nesterov) == (1e-4, 0.1, False)
        steps = config.steps_of(1_281_167 // 256, 100)
        assert [steps(drop) for drop in given.drops] == [steps(f"{epoch}ep") for epoch in (30, 60, 90)]
    assert (c.data.source, c.data.image_size) == ("tfds:imagenet2012", 224)
    assert (c.objective.ce.weight, c.objective.terms.kd.weight, c.objective.terms.kd.temperature) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(("pair", "beta"), [(("resnet34", "resnet18"), 0.5), (("resnet50", "mobilenetv1"), 2.0)])
def test_dkd(pair, beta):
    line = recipes.imagenet(*pair, "dkd").objective.terms.dkd
    assert (line.alpha, line.beta, line.temperature) == (1.0, beta, 1.0)
    assert (line.schedule.name, line.schedule.end) == ("linear", "1ep")


def test_gompertz():
    for method in ("gompertz_kd", "kd+gompertz", "gompertz_cnn"):
        assert recipes.imagenet("resnet34", "resnet18", method).objective.terms.kd.schedule.name == "gompertz"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("crd", "unknown method on ImageNet 'crd'.*; known: alone, dkd"),
        ("kd+cosine", "stands 'gompertz', not 'cosine'"),
        ("alone+gompertz", "the method 'alone' has nothing but cross-entropy"),
    ],
)
def test_methods_that_there_are_not(method, message):
    with pytest.raises(UserError, match=message):
        recipes.imagenet("resnet34", "resnet18", method)


def test_what_a_run_changed_of_it():
    c = recipes.imagenet("resnet34", "resnet18", "kd")
    resolved = c.to_dict() | {"objective": objective.resolve(c.objective.to_dict())}
    assert recipes.changes(resolved) == []
    assert recipes.changes(resolved | {"epochs": 30}) == ["epochs: 100 -> 30"]
