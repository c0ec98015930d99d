"""Networks by name."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gkd_jax import native, registry
from gkd_jax.errors import UserError, unknown
from gkd_jax.models.adapter import linen
from gkd_jax.models.convolution import CONV_FORMS
from gkd_jax.outputs import Model

Build = Callable[[int, Any, str], nn.Module | Model]

_BUILDS: dict[str, Build] = {}
_DTYPES = ("float32", "bfloat16")
_FORM_BY_PLATFORM = {"cpu": "cpu", "gpu": "matmul", "cuda": "matmul", "rocm": "matmul", "tpu": "matmul"}
_fixed: list[str] = []


def register(name: str) -> Callable[[Build], Build]:
    """Registers a network under `name`, by decorating a function that builds it.

    The function takes `(num_classes, dtype, conv)` and returns a `Model`, or a linen module that `adapter.linen` makes
    into one: called as `module(images, train=train, probes=probes)`, it returns `Outputs`, and its child `classifier`
    is the last linear layer. It may ignore `dtype` and `conv`. The function itself is returned unchanged.

        @models.register("tiny")
        def tiny(num_classes, dtype, conv):
            return Tiny(num_classes, models.Compute(dtype, conv))

    Raises:
      ValueError: if another function has the name.
    """

    def decorate(build: Build) -> Build:
        registry.add(_BUILDS, "model", name, build)
        return build

    return decorate


def names() -> list[str]:
    """Returns the names of the registered networks, sorted."""
    return sorted(_BUILDS)


def create(name: str, *, num_classes: int, dtype: Any = jnp.float32, conv: str = "matmul") -> Model:
    """Returns the network `name`.

    Args:
      name: one of `names()`.
      num_classes: c, the length of the logits.
      dtype: of activations, float32 or bfloat16; parameters, statistics and logits are float32 in either case.
      conv: form of the convolutions, "matmul", "cpu", "native" or "plain" (`convolution.convolve`), and with it of
        BatchNorm's sums, with the same variables; resolve it from the platform that will run the network with
        `conv_form`. Forward mode (`jax.jvp`, `jax.hessian`) needs "plain": it raises TypeError where a form has
        derivatives of its own.

    Raises:
      UserError: if no network has that name, there are fewer than two classes, dtype or form is not one of these, or
        the form is "native" on a machine that cannot compile it.
    """
    if name not in _BUILDS:
        raise unknown("model", name, _BUILDS)
    if num_classes < 2:
        raise UserError(f"num_classes of model {name!r} is {num_classes}; it must be 2 or more")
    if conv not in CONV_FORMS:
        raise unknown("convolution form", conv, CONV_FORMS)
    if conv == "native" and not native.available():
        raise UserError("convolution form 'native' needs a C++ compiler, and GKD_JAX_NATIVE not to be off")
    try:
        known = jnp.dtype(dtype).name in _DTYPES
    except TypeError:
        known = False
    if not known:
        raise unknown("compute type", str(dtype), _DTYPES)
    built = _BUILDS[name](num_classes, jnp.dtype(dtype), conv)
    return linen(built) if isinstance(built, nn.Module) else built


def conv_form(platform: str) -> str:
    """Returns the form of convolutions that is fast on `platform`: "cpu", "gpu" ("cuda", "rocm") or "tpu".

    The platform is the one that will run the network, not the one that traces it: a step lowered for a TPU on a CPU
    host must not get the CPU's form. So the caller says which, before tracing. Exports do not ask: they use "plain",
    which other runtimes recognise.

    On a CPU it is "native" where `gkd_jax.native` is available, which may compile it, and JAX has a single CPU device,
    else "cpu"; to know that, JAX's backends are started. A network in the form "native" runs on this machine alone:
    make what is to be lowered for another platform or exported in another form.

    Raises:
      UserError: if the platform is none of these.
    """
    if _fixed:
        return _fixed[-1]
    if platform not in _FORM_BY_PLATFORM:
        raise unknown("platform", platform, _FORM_BY_PLATFORM)
    if platform == "cpu" and jax.device_count("cpu") == 1 and native.available():
        return "native"
    return _FORM_BY_PLATFORM[platform]


@contextlib.contextmanager
def fixed_form(form: str) -> Iterator[None]:
    """Has `conv_form` return `form` for a while: "plain", say, for a program whose work is to be counted, not run."""
    _fixed.append(form)
    try:
        yield
    finally:
        _fixed.pop()
