"""A student that speaks through its teacher's classifier (SimKD).

Chen, Mei, Zhang, Wang, Feng and Chen, "Knowledge Distillation with the Reused Teacher Classifier" (CVPR 2022, arXiv
2203.14001), section 3.2; the projector as in the authors' code (`models/util.py` of DefangChen/SimKD).
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.errors import UserError
from gkd_jax.models.adapter import fold_variables
from gkd_jax.models.layers import Compute, ConvNorm, linear_kernel_init
from gkd_jax.outputs import Model, Outputs, Variables

_NO_PROBES: Mapping[str, Array] = MappingProxyType({})

Pool = Callable[[Float[Array, "b h w k"], int, int], Float[Array, "b i j k"]]


class Reused(NamedTuple):
    """What a student takes over from its teacher.

    Attributes:
      final: height, width and channels of the teacher's final map.
      kernel, bias: of its classifier, [d c] and [c].
    """

    final: tuple[int, int, int]
    kernel: Any
    bias: Any

    @classmethod
    def of_zeros(cls, final: tuple[int, int, int], num_classes: int) -> "Reused":
        """Returns the shapes of what is taken over, where its values are among the variables of the student."""
        return cls(final, np.zeros((final[2], num_classes), np.float32), np.zeros(num_classes, np.float32))


class Projector(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, each with BatchNorm and ReLU, narrow in the middle.

    Kernels start as PyTorch's, uniform within ±1/√fan-in, as the authors' code leaves them.

    Attributes:
      width: channels out.
      middle: channels of the 3x3 convolution.
      compute: element type and form.
    """

    width: int
    middle: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b h w o"]:
        """Returns the projected map."""
        for name, width, size in (("reduce", self.middle, 1), ("mix", self.middle, 3), ("expand", self.width, 1)):
            layer = ConvNorm(width, size=size, kernel_init=linear_kernel_init, compute=self.compute, name=name)
            x = nn.relu(layer(x, train=train))
        return x


def reuse_classifier(student: Model, reused: Reused, *, pool: Pool, compute: Compute, factor: int = 2) -> Model:
    """Returns the student with a projector on its final map, and behind it the teacher's classifier, which stays.

    The final map, average-pooled to the teacher's where that is smaller, goes through a `Projector` of the teacher's
    width; its mean over positions is the embedding, which the teacher's classifier reads. The student's own classifier
    is still there, and speaks to nobody.

    Args:
      student: reports `Outputs.final`.
      reused: of the teacher.
      pool: `(maps, height, width) -> maps`, averages over positions.
      compute: element type and form of the projector's convolutions.
      factor: by how much the middle of the projector is narrower than the teacher's final map; 2 in the paper's tables.

    Returns:
      A network whose `final` is the projected map, whose `features` are the student's, and whose variables are "params"
      and "batch_stats" of "student" and "projector" each, and in "frozen" the teacher's "kernel" and "bias" (with the
      student's own frozen variables as "student", if it has any).

    Raises:
      UserError: when it is initialised or applied, if the student reports no final map.
    """
    height, width, channels = reused.final
    projector = Projector(channels, max(channels // factor, 1), compute)

    def pooled(outputs: Outputs) -> Array:
        if outputs.final is None:
            raise UserError("a student that reuses its teacher's classifier must report its final map, and it does not")
        _, h, w, _ = outputs.final.shape
        return pool(outputs.final, min(h, height), min(w, width))

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        inner = student.init(key, images)  # with the key as it is: the student starts as it would alone
        maps = jax.eval_shape(lambda: pooled(student.apply(inner, images, train=False)[0]))
        own = projector.init(jax.random.fold_in(key, 1), jnp.zeros(maps.shape, maps.dtype), train=False)
        others = {name: tree for name, tree in inner.items() if name not in ("params", "batch_stats")}
        return {
            "params": {"student": inner["params"], "projector": own["params"]},
            "batch_stats": {"student": inner.get("batch_stats", {}), "projector": own["batch_stats"]},
            "frozen": {
                "kernel": jnp.asarray(reused.kernel, jnp.float32),
                "bias": jnp.asarray(reused.bias, jnp.float32),
                **({"student": others} if others else {}),
            },
        }

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        probes: Mapping[str, Array] = _NO_PROBES,
    ) -> tuple[Outputs, Any]:
        outputs, statistics = student.apply(_inner(variables), images, train=train, key=key, probes=probes)
        own = {name: variables[name].get("projector", {}) for name in ("params", "batch_stats")}
        final, updated = projector.apply(own, pooled(outputs), train=train, mutable=["batch_stats"] if train else [])
        embedding = final.astype(jnp.promote_types(final.dtype, jnp.float32)).mean((1, 2))
        kernel, bias = read_classifier(variables)
        logits = embedding @ kernel + bias[None]
        after = updated["batch_stats"] if train else own["batch_stats"]
        return outputs._replace(logits=logits, embedding=embedding, final=final), {
            "student": statistics,
            "projector": after,
        }

    def read_classifier(variables: Variables) -> tuple[Array, Array]:
        return variables["frozen"]["kernel"], variables["frozen"]["bias"]

    def fold(variables: Variables) -> tuple[Model, Variables]:
        assert student.fold is not None
        model, inner = student.fold(_inner(variables))
        projector = {name: variables[name]["projector"] for name in ("params", "batch_stats")}
        own = fold_variables(projector, compute.dtype)
        folded = dataclasses.replace(compute, folded=True)
        again = reuse_classifier(model, reused, pool=pool, compute=folded, factor=factor)
        both = {name: {"student": inner.get(name, {}), "projector": own[name]} for name in ("params", "batch_stats")}
        return again, {**variables, **both}

    def norms(variables: Variables) -> Any:
        assert student.norms is not None
        return student.norms(_inner(variables))

    return Model(init, apply, read_classifier, fold if student.fold else None, norms if student.norms else None)


def _inner(variables: Variables) -> Variables:
    """Returns the variables of the student within."""
    own = {name: variables[name]["student"] for name in ("params", "batch_stats")}
    return {**own, **variables["frozen"].get("student", {})}
