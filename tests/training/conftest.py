"""Small jobs on images made of noise: what is tested here is the machinery, not what is learnt."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caches import BATCH, PLENTY, ROWS, SIZE

from gkd_jax import config, models, objective
from gkd_jax.data import Dataset
from gkd_jax.data.checks import Arrays
from gkd_jax.data.dataset import build
from gkd_jax.training import recall
from gkd_jax.training.cache import Cache
from gkd_jax.training.devices import mesh, replicated
from gkd_jax.training.finished import Finished
from gkd_jax.training.program import Job
from gkd_jax.training.resolve import resolve
from gkd_jax.training.shards import Shards
from gkd_jax.training.teacher import Teacher

CLASSES = 4


@pytest.fixture(scope="module", autouse=True)
def _registrations() -> Iterator[None]:
    with helpers.registrations():
        yield


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    arrays = Arrays(
        x_train=rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8),
        y_train=np.arange(80, dtype=np.int32) % CLASSES,
        x_test=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        y_test=np.arange(20, dtype=np.int32) % CLASSES,
        class_names=tuple("abcd"),
    )
    return build("noise", arrays, val_fraction=0.2, split_seed=0, pad=1, flip=True)


@pytest.fixture(scope="session")
def teacher(dataset: Dataset) -> Teacher:
    """A network that was never trained, with statistics and a classifier that make its opinions differ."""
    model = models.create("resnet8", num_classes=CLASSES)
    variables = model.init(jax.random.key(7, impl="rbg"), jnp.zeros((1, 8, 8, 3)))
    variables = jax.device_put(variables, jax.devices()[0])  # where a checkpoint puts them
    known = Finished(
        {"student": {"model": "resnet8"}},
        dataset.class_names,
        (8, 8, 3),
        dataset.mean,
        dataset.std,
        model,
        variables,
        0,
        {},
    )
    return Teacher(model, variables, *model.classifier(variables), known)


@pytest.fixture
def make_job(dataset: Dataset, teacher: Teacher, tmp_path: pathlib.Path) -> Callable[..., Job]:
    """Returns a function that makes a job: KD alone by default; keywords set fields, "__" for the dot."""

    def make(terms: dict[str, dict[str, Any]] | None = None, taught: bool = True, **fields: Any) -> Job:
        given = config.default()
        given.epochs, given.batch_size = 2, 16
        given.data.source = "digits"
        given.student.model, given.teacher.model = "resnet8", "resnet8" if taught else config.NO_TEACHER
        given.tensorboard = given.plots = False
        chosen = {"kd": {"weight": 1.0}} if terms is None else terms
        for label, options in chosen.items():
            given.objective.terms[label] = objective.block(options.pop("term", label), **options)
        for path, value in fields.items():
            *folders, last = path.split("__")
            place = given
            for name in folders:
                place = place[name]
            place[last] = value
        return Job("test", resolve(given), tmp_path / "run", dataset, teacher if taught else None)

    return make


@pytest.fixture
def in_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is asked for all views of these small data sets at once, as it would be on an accelerator."""
    monkeypatch.setattr(recall, "views_at_once", lambda _: 1024)


@pytest.fixture
def begin() -> Callable[..., Any]:
    """Returns a function that gives a program's first state, plan and constants."""

    def start(program: Any, epoch: int = 0) -> tuple[Any, Any, Any]:
        state, frozen = program.initial()
        return state, program.plan(epoch), program.fixed(frozen)

    return start


@pytest.fixture(params=["device", "host", "two devices", "two devices, host"])
def make_cache(request: pytest.FixtureRequest) -> Callable[..., Cache]:
    """Returns a function that makes a cache in the tier under test, with the folder and the teacher that are given."""
    many = "two" in request.param
    where = replicated(mesh(jax.devices()[: 2 if many else 1]))

    def build(ask: Any, folder: pathlib.Path | None = None, **fields: Any) -> Cache:
        say = fields.setdefault("say", pytest.fail)
        rows = fields.pop("rows", ROWS)
        given = {
            "size": SIZE,
            "batch": BATCH,
            "where": where,
            "device_budget": 0 if "host" in request.param else PLENTY,
            "shards": None if folder is None else {name: Shards(folder / name, say) for name in rows},
            "waits": many,
        }
        cache = Cache(ask, rows, **{**given, **fields})
        assert cache.tier == ("host" if "host" in request.param else "device")
        return cache

    build.where = where  # type: ignore[attr-defined]
    return build


def replace(job: Job, **fields: Any) -> Job:
    """Returns the job with other fields in its configuration."""
    return dataclasses.replace(job, config={**job.config, **fields})
