"""Every method on every standard pair: what it trains and computes fits what the real networks say of CIFAR's images.

By shapes alone: `jax.eval_shape` follows networks, heads, states, constants and losses, and nothing is compiled.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from gkd_jax import config, models, objective, recipes
from gkd_jax.models.simkd import Reused
from gkd_jax.outputs import Batch, Model, Outputs, Setup
from gkd_jax.recipes import published
from gkd_jax.training import finished
from gkd_jax.training.forward import forward_shapes
from gkd_jax.training.resolve import resolve

CLASSES, EXAMPLES, BATCH, PER_EPOCH = 100, 50_000, 64, 781
# Two kinds of networks with other widths and sizes of maps: tried at every change, the other pairs by `make test-all`
SOME = ("wrn_40_2", "shufflenetv1")


def _case(pair: tuple[str, str], *more: Any) -> Any:
    marks = [] if pair == SOME else [pytest.mark.exhaustive]
    return pytest.param(pair, *more, marks=marks, id=",".join(pair))


def _struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


KEY, IMAGES = jax.eval_shape(lambda: jax.random.key(0)), _struct(BATCH, 32, 32, 3)


class Built(NamedTuple):
    """What a method makes of a pair, as shapes."""

    student: Outputs
    teacher: Outputs | None
    heads: Any
    states: tuple[Any, Any]  # before a step, and after it
    readings: dict[str, objective.Reading]
    loss: Any


def _resolved(pair, method):
    return resolve(recipes.standard(*pair, "cifar100", method))


def _lines(resolved):
    return objective.build(resolved["objective"], 240 * PER_EPOCH, config.steps_of(PER_EPOCH, 240))


@functools.cache
def _wanted():
    """The gradients that any method asks for: what a network says of all of them is found once."""
    pair = published.pairs()[0]
    lines = {
        f"{name} {label}": line for name in recipes.names() for label, line in _lines(_resolved(pair, name)).items()
    }
    return objective.gradients(lines)


def _said(model: Model, train: bool) -> tuple[Any, Outputs]:
    variables = jax.eval_shape(model.init, KEY, IMAGES)
    return variables, forward_shapes(model, variables, IMAGES, _wanted(), train=train)


@functools.cache
def _network(name: str, train: bool) -> tuple[Model, Any, Outputs]:
    model = models.create(name, num_classes=CLASSES)
    return model, *_said(model, train)


@functools.cache
def _built(pair, method) -> Built:
    resolved = _resolved(pair, method)
    lines = _lines(resolved)
    model, variables, teacher = _network(pair[0], train=False)
    said = model.classifier, model.norms or (lambda variables: None)
    classifier, norms = (jax.eval_shape(of, variables) for of in said)
    if resolved["teacher"]["model"] == config.NO_TEACHER:
        teacher, classifier, norms = None, (None, None), None
    if finished.reuses(resolved):
        reused = Reused.of_zeros(teacher.final.shape[1:], CLASSES)
        _, student = _said(finished.network(resolved, CLASSES, reused=reused), train=True)
    else:
        *_, student = _network(pair[1], train=True)
    numbers = functools.partial(_struct, BATCH, dtype=jnp.int32)
    views = {line.view for line in lines.values()}
    batch = Batch(dict.fromkeys(views, IMAGES), numbers(), _struct(BATCH, CLASSES), numbers(), numbers(), numbers())
    batch = batch._replace(step=_struct(dtype=jnp.int32))

    def step(key, labels, classifier, norms, batch, said):
        setup = Setup(CLASSES, EXAMPLES, PER_EPOCH, labels, *classifier, norms)
        heads, states = objective.init(key, lines, student, teacher, setup)
        weights = {name: line.weight.init for name, line in lines.items()}
        constants = objective.constants(lines, setup)
        loss, (readings, after) = objective.total(lines, heads, states, weights, constants, *said, batch, key)
        return heads, (states, after), readings, loss

    said = [{} if outputs is None else dict.fromkeys(views, outputs) for outputs in (student, teacher)]
    labels = _struct(EXAMPLES, dtype=jnp.int32)
    return Built(student, teacher, *jax.eval_shape(step, KEY, labels, classifier, norms, batch, said))


@pytest.mark.parametrize("pair", [_case(pair) for pair in published.pairs()])
@pytest.mark.parametrize("method", recipes.names())
def test_a_method_fits_a_pair(method, pair):
    built = _built(pair, method)
    scalar = ((), jnp.float32)
    for value in (built.loss, *(part for reading in built.readings.values() for part in reading)):
        assert (value.shape, value.dtype) == scalar
    # What is carried through a loop keeps its shapes and types
    before, after = built.states
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.leaves(before) == jax.tree.leaves(after)


# Channels of the student's maps and the teacher's, shallow to deep: the widths of the published networks, and for
# resnet50 to mobilenetv2 those of the configuration in mdistiller's issue 39
OVERHAULED = [
    _case(SOME, [240, 480, 960], [32, 64, 128]),
    _case(("resnet32x4", "shufflenetv2"), [116, 232, 464], [64, 128, 256]),
    _case(("resnet50", "mobilenetv2_half"), [12, 16, 48, 160], [256, 512, 1024, 2048]),
]


@pytest.mark.parametrize(("pair", "student", "teacher"), OVERHAULED)
def test_ofd_connects_the_stages_behind_the_stem(pair, student, teacher):
    heads = _built(pair, "ofd").heads["ofd"]
    assert [head["kernel"].shape for head in heads.values()] == list(zip(student, teacher, strict=True))
    assert [head["norm"]["scale"].shape for head in heads.values()] == [(width,) for width in teacher]


@pytest.mark.parametrize(
    ("pair", "student", "teacher"),
    [
        _case(SOME, [240, 480, 960, 960], [32, 64, 128, 128]),
        _case(("resnet50", "mobilenetv2_half"), [12, 16, 48, 160, 1280], [256, 512, 1024, 2048, 2048]),
    ],
)
def test_reviewkd_reads_the_stages_and_the_embedding(pair, student, teacher):
    heads = _built(pair, "reviewkd").heads["reviewkd"]
    between = min(512, student[-1])
    assert [head["enter"]["kernel"].shape for head in heads.values()] == [(width, between) for width in student]
    assert [head["leave"]["kernel"].shape for head in heads.values()] == [(3, 3, between, width) for width in teacher]


@pytest.mark.parametrize(("pair", "width"), [_case(SOME, 128), _case(("resnet50", "mobilenetv2_half"), 2048)])
def test_simkd_speaks_in_the_teachers_width(pair, width):
    built = _built(pair, "simkd")
    (rows, *_), (height, *_) = built.student.final.shape[1:], built.teacher.final.shape[1:]
    assert built.student.final.shape == (BATCH, min(rows, height), min(rows, height), width)
    assert built.student.embedding.shape == built.teacher.embedding.shape == (BATCH, width)
