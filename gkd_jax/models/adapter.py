"""From a linen module to a `Model` of pure functions, and BatchNorm folded into convolutions."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from gkd_jax.models.layers import BATCH_NORM_EPSILON, Compute
from gkd_jax.outputs import Model, Norms, Outputs, Variables

_NO_PROBES: Mapping[str, Array] = MappingProxyType({})


def linen(module: nn.Module, *, classifier: str = "classifier") -> Model:
    """Returns `module` as a `Model`.

    Args:
      module: called as `module(images, train=train, probes=probes)`, it returns `Outputs`. It keeps running statistics
        in the collection "batch_stats", if it has any, and draws dropout from the stream "dropout". If its class says
        `foldable = True`, the model can be folded: it then has a field `compute` (a `layers.Compute`) whose `folded` it
        heeds, and normalises by `layers.ConvNorm` and `layers.BatchNorm` alone. If it has a method `preact_norms()`,
        that returns, for each of `Outputs.preact`, the path of the BatchNorm that it comes out of, such as
        "stem/norm", or None; so the model can say its `norms`, until it is folded.
      classifier: name of its child whose parameters are `kernel` [d c] and `bias` [c].
    """
    compute = getattr(module, "compute", None)
    folded = isinstance(compute, Compute) and compute.folded

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        return {"batch_stats": {}, **module.init(key, images, train=False, probes={})}

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        probes: Mapping[str, Array] = _NO_PROBES,
    ) -> tuple[Outputs, Any]:
        if train and folded:
            raise ValueError("a folded network has no batch statistics to train with")
        rngs = None if key is None else {"dropout": key}
        outputs, updated = module.apply(
            variables, images, train=train, probes=probes, rngs=rngs, mutable=["batch_stats"] if train else []
        )
        return outputs, updated.get("batch_stats", {}) if train else variables["batch_stats"]

    def read_classifier(variables: Variables) -> tuple[Array, Array]:
        layer = variables["params"][classifier]
        return layer["kernel"], layer["bias"]

    def fold(variables: Variables) -> tuple[Model, Variables]:
        assert isinstance(compute, Compute)
        again = module.clone(compute=dataclasses.replace(compute, folded=True))
        return linen(again, classifier=classifier), fold_variables(variables, compute.dtype)

    def norms(variables: Variables) -> Norms:
        paths: tuple[str | None, ...] = module.preact_norms()
        return tuple(None if path is None else _scale_and_bias(variables["params"], path) for path in paths)

    can_fold = getattr(type(module), "foldable", False) and not folded
    can_say = hasattr(module, "preact_norms") and not folded
    return Model(init, apply, read_classifier, fold if can_fold else None, norms if can_say else None)


def _scale_and_bias(params: Mapping[str, Any], path: str) -> tuple[Array, Array]:
    norm = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
    return norm["scale"], norm["bias"]


def fold_variables(variables: Variables, dtype: Any) -> Variables:
    """Returns the variables of the folded network that computes in `dtype`.

    A child `norm` beside a child `conv` goes into it: with `s = scale / √(var + ε)`, the kernel becomes `kernel · s`
    (output channels stand last in HWIO, depthwise too) and the bias `(bias_conv - mean) · s + bias_norm`. Any other
    BatchNorm becomes a scale s and a shift `bias - mean · s`. No statistics are left. What convolutions hold is in
    `dtype`, as they would make it at every call: a launch each on a GPU, which no compiler takes out of a loop.
    """
    params = _cast(_fold(variables["params"], variables["batch_stats"]), dtype)
    return {**variables, "params": params, "batch_stats": {}}


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    if "mean" in stats:
        scale, shift = _affine(params, stats)
        return {"scale": scale, "bias": shift}
    if set(params) == {"conv", "norm"}:  # a `layers.ConvNorm`
        scale, shift = _affine(params["norm"], stats["norm"])
        conv = params["conv"]
        kernel = conv["kernel"] * scale[None, None, None]
        return {"conv": {"kernel": kernel, "bias": conv["bias"] * scale + shift if "bias" in conv else shift}}
    return {
        name: _fold(child, stats.get(name, {})) if isinstance(child, Mapping) else child
        for name, child in params.items()
    }


def _cast(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Returns parameters with those of each `layers.Conv`, whose kernel has four axes, in `dtype`."""
    if "kernel" in params and params["kernel"].ndim == 4:
        return {name: leaf.astype(dtype) for name, leaf in params.items()}
    return {name: _cast(child, dtype) if isinstance(child, Mapping) else child for name, child in params.items()}


def _affine(params: Mapping[str, Array], stats: Mapping[str, Array]) -> tuple[Array, Array]:
    scale = params["scale"] * jax.lax.rsqrt(stats["var"] + jnp.float32(BATCH_NORM_EPSILON))
    return scale, params["bias"] - stats["mean"] * scale
