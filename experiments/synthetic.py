"""A job on images of noise with a teacher that was never trained: for what depends on shapes alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax.data.checks import Arrays
from gkd_jax.data.dataset import build
from gkd_jax.training.finished import Finished, network
from gkd_jax.training.program import Job
from gkd_jax.training.teacher import Teacher


def job(resolved: Mapping[str, Any], teacher: str, *, images: int, classes: int) -> Job:
    """Returns the job of a student that is taught by the network `teacher` on 32x32 images, shaped as CIFAR's."""
    rng = np.random.default_rng(0)
    arrays = Arrays(
        x_train=rng.integers(0, 256, (images, 32, 32, 3), np.uint8),
        y_train=np.arange(images, dtype=np.int32) % classes,
        x_test=rng.integers(0, 256, (classes, 32, 32, 3), np.uint8),
        y_test=np.arange(classes, dtype=np.int32),
        class_names=tuple(map(str, range(classes))),
    )
    dataset = build("noise", arrays, val_fraction=0.0, split_seed=0, pad=4, flip=True)
    known = {**resolved, "student": {"model": teacher}}
    model = network(known, classes)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    finished = Finished(known, dataset.class_names, (32, 32, 3), dataset.mean, dataset.std, model, variables, 0, {})
    kernel, bias = model.classifier(variables)
    norms = model.norms(variables) if model.norms else None
    folded, weights = model.fold(variables) if model.fold else (model, variables)
    return Job("noise", dict(resolved), Path(), dataset, Teacher(folded, weights, kernel, bias, finished, norms))
