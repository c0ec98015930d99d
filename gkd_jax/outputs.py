"""What flows between networks, losses and the training step.

Shapes: b examples, c classes, d channels of the embedding, h x w positions, k channels of a feature map.
A field that is None was not computed, or is not held by a cache.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

Features = tuple[Float[Array, "b h w k"], ...]


class Outputs(NamedTuple):
    """What a network says about a batch of images.

    Attributes:
      logits: float32, whatever the compute type.
      embedding: the pooled vector that the classifier reads.
      final: the map that is pooled into `embedding`.
      features: the output of the stem and of each stage, shallow to deep.
      preact: the same, before the stage's last ReLU.
      grads: one array for each `Gradient` that was asked for, by its name.
    """

    logits: Float[Array, "b c"]
    embedding: Float[Array, "b d"] | None = None
    final: Float[Array, "b h w d"] | None = None
    features: Features | None = None
    preact: Features | None = None
    grads: Mapping[str, Array] = {}


class Batch(NamedTuple):
    """One step's examples.

    Attributes:
      images: normalised float images by view name; every objective has the view "weak".
      labels: classes as integers.
      targets: classes as probabilities.
      index: place of each example in the training split.
      view: crop-and-flip id of each example in the view "weak".
      step: the step's number, from 0.
      teacher: the teacher's outputs by view name, where they were looked up rather than computed: those of "weak".
      constants: of the term that reads this batch, see `losses.Term.constants`.
    """

    images: Mapping[str, Float[Array, "b h w k"]]
    labels: Int[Array, " b"]
    targets: Float[Array, "b c"]
    index: Int[Array, " b"]  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a batch
    view: Int[Array, " b"]
    step: Int[Array, ""]
    teacher: Mapping[str, Outputs] = {}
    constants: Any = ()


Cotangent = Callable[[Float[Array, "b c"], Float[Array, "b c"] | None, Batch, PRNGKeyArray], Float[Array, "b c"]]


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A request for the gradient of something in the logits with respect to something in the network.

    Attributes:
      name: where the answer stands in `Outputs.grads`; requests of equal names are computed once.
      at: "input" for the normalised images, "feature:i" for `Outputs.features[i]` (negative i counts from the deepest).
      cotangent: `(logits, teacher_logits, batch, key)` -> the derivative of that something in the logits, [b c].
      cacheable: whether the teacher's answer depends on the image and its class alone, and only its direction counts.
        A cache keeps it divided by its largest magnitude; students that share a batch share it.
    """

    name: str
    at: str
    cotangent: Cotangent = dataclasses.field(compare=False)
    cacheable: bool = False


Norms = tuple[tuple[Float[Array, " k"], Float[Array, " k"]] | None, ...]


class Setup(NamedTuple):
    """What is known before the first step.

    Attributes:
      num_classes: c.
      num_examples: size of the training split.
      steps_per_epoch: after the last partial batch is dropped.
      labels: of the training split, [n].
      teacher_kernel, teacher_bias: of the teacher's classifier, [d c] and [c]; None without a teacher.
      teacher_norms: what the teacher's `Model.norms` says; None without a teacher, or where it says nothing.
    """

    num_classes: int
    num_examples: int
    steps_per_epoch: int
    labels: Int[Array, " n"] | None = None
    teacher_kernel: Float[Array, "d c"] | None = None
    teacher_bias: Float[Array, " c"] | None = None
    teacher_norms: Norms | None = None


Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree, maybe "frozen": tree}


class Model(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `(key, images) -> variables`.
      apply: `(variables, images, *, train, key=None, probes={}) -> (Outputs, batch_stats)`. Each stage adds
        `probes["feature:i"]`, if given, to its output, so that a gradient with respect to a probe of zeros is the
        gradient with respect to that feature. `train=True` normalises by the batch and returns updated statistics;
        otherwise they come back as they are.
      classifier: `(variables) -> (kernel [d c], bias [c])`.
      fold: `(variables) -> (Model, variables)`, the same function in eval mode with BatchNorm folded into the
        convolutions that it follows; None if the network has no such form.
      norms: `(variables) -> ((scale [k], bias [k]) | None, ...)`, one for each of `Outputs.preact`: of the BatchNorm
        that it comes out of, perhaps with a shortcut added; None where there is none. None if the network cannot say.
    """

    init: Callable[[PRNGKeyArray, Array], Variables]
    apply: Callable[..., tuple[Outputs, Any]]
    classifier: Callable[[Variables], tuple[Array, Array]]
    fold: Callable[[Variables], tuple["Model", Variables]] | None = None
    norms: Callable[[Variables], Norms] | None = None


def stop_gradient(outputs: Outputs) -> Outputs:
    """Returns `outputs` as constants."""
    return jax.tree.map(jax.lax.stop_gradient, outputs)
