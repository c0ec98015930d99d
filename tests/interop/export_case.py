"""Networks whose every layer says something, and their own logits on a few images."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax import data, models
from gkd_jax.interop.served import Served, serve
from gkd_jax.outputs import Model, Outputs

NAMES = ("ape", "bee", "crow d'été", "dog")
MEAN, STD = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32)

FAST = {"xla_backend_optimization_level": 0}  # to compile, not to run


class Case(NamedTuple):
    """A network to export, with what it says about `images`."""

    model: Model
    variables: Any
    served: Served
    images: np.ndarray
    logits: np.ndarray


@functools.cache
def case(name: str, side: int = 16) -> Case:
    """Returns the network `name`, whose running statistics are those of a batch, so that its logits are near 1."""
    rng = np.random.default_rng(0)
    model = models.create(name, num_classes=len(NAMES), conv="plain")
    images = rng.integers(0, 256, (24, side, side, 3)).astype(np.uint8)

    def known(images: Any) -> Any:
        x = data.normalise(images, MEAN, STD)
        variables = model.init(jax.random.key(0, impl="rbg"), x)
        _, moved = model.apply(variables, x, train=True)
        stats = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moved, variables["batch_stats"])
        variables = {**variables, "batch_stats": stats}
        return variables, model.apply(variables, x[:6], train=False)[0].logits

    variables, logits = jax.jit(known, compiler_options=FAST)(jnp.asarray(images))
    assert 0.1 < np.abs(logits).max() < 100  # neither dead nor drowned in rounding
    served = serve(name, model, variables, NAMES, (side, side, 3), MEAN, STD)
    return Case(model, variables, served, images[:6], np.asarray(logits))


def calls_back() -> Served:
    """Returns a network that asks Python in the middle, which no file can."""

    def apply(variables: Any, images: Any, *, train: bool) -> Any:
        logits = images.mean((1, 2))
        shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
        return Outputs(jax.pure_callback(lambda x: x, shape, logits)), {}

    model = models.create("resnet8", num_classes=3)._replace(apply=apply, fold=None)
    return serve("caller", model, {"params": {}}, ("a", "b", "c"), (4, 4, 3), MEAN, STD)
