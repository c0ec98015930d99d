"""A network without kinks that has a feature map, in JAX and in NumPy with its derivatives written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax.objective import stream
from gkd_jax.outputs import Batch, Model, Outputs, stop_gradient
from gkd_jax.training.forward import forward

CLASSES = 4


def smooth(width, stride=1):
    """Returns the network: every `stride`-th pixel, tanh of a 1x1 map of `width`, tanh of a dense layer, classifier."""

    def init(key, images):
        keys = jax.random.split(key, 3)
        h, w = images[:, ::stride, ::stride].shape[1:3]
        sizes = {"map": (images.shape[3], width), "dense": (h * w * width, 6), "out": (6, CLASSES)}
        params = {
            name: 1.5 * jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, (name, shape) in zip(keys, sizes.items(), strict=True)
        }
        return {"params": params, "batch_stats": {}}

    def apply(variables, images, *, train, key=None, probes=None):
        p = variables["params"]
        feature = jnp.tanh(images[:, ::stride, ::stride] @ p["map"]) + (probes or {}).get("feature:0", 0.0)
        embedding = jnp.tanh(feature.reshape(feature.shape[0], -1) @ p["dense"])
        return Outputs(embedding @ p["out"], embedding, feature, (feature,)), {}

    return Model(init, apply, lambda v: (v["params"]["out"], jnp.zeros(CLASSES)))


class Slow:
    """The same in NumPy for some images, in float64."""

    def __init__(self, params, images, stride=1):
        self.p = {name: np.float64(value) for name, value in params.items()}
        self.feature = np.tanh(np.float64(images)[:, ::stride, ::stride] @ self.p["map"])
        self.embedding = np.tanh(self.feature.reshape(len(images), -1) @ self.p["dense"])
        self.logits = self.embedding @ self.p["out"]

    def in_feature(self, cotangent):
        """Returns the gradient of <cotangent, logits> of each example in its feature map."""
        inner = (np.float64(cotangent) @ self.p["out"].T) * (1 - self.embedding**2)
        return (inner @ self.p["dense"].T).reshape(self.feature.shape)

    def in_image(self, cotangent):
        """Returns the same in its image, for a stride of 1."""
        return (self.in_feature(cotangent) * (1 - self.feature**2)) @ self.p["map"].T


class Pair:
    """A student, a teacher and a batch; `values` is what a training step would compute of a term between them."""

    def __init__(self, key, student_stride=1, teacher_stride=1):
        self.key = key
        keys = jax.random.split(key, 3)
        self.images = jax.random.normal(keys[0], (5, 4, 4, 2))
        labels = jnp.arange(5) % CLASSES
        self.batch = Batch({"weak": self.images}, labels, jax.nn.one_hot(labels, CLASSES), labels, labels, jnp.int32(0))
        self.student, self.teacher = smooth(3, student_stride), smooth(5, teacher_stride)
        self.params = self.student.init(keys[1], self.images)["params"]
        self.teacher_params = self.teacher.init(keys[2], self.images)["params"]

    def values(self, created, need, params, teacher_params=None, teacher=None):
        images, batch, key = self.images, self.batch, self.key
        theirs = {"params": self.teacher_params if teacher_params is None else teacher_params}
        ask = {"train": False, "batch": batch, "key": key}
        t, _ = forward(teacher or self.teacher, theirs, images, [need], **ask)
        s, _ = forward(self.student, {"params": params}, images, [need], teacher_logits=t.logits, **ask)
        return created.loss({}, (), s, stop_gradient(t), batch, key)[0]

    def drawn(self, need, shape):
        """Returns the cotangent that a request draws at this step."""
        return need.cotangent(jnp.zeros(shape), None, self.batch, stream(self.key, f"cotangent of {need.name}"))


def along(params, direction, t):
    return {name: np.float64(value) + t * direction[name] for name, value in params.items()}


def slope(f, params, direction, step=1e-5):
    """Returns the derivative of the scalar `f` of parameters along a direction, by central differences."""
    return (f(along(params, direction, step)) - f(along(params, direction, -step))) / (2 * step)


def directions(params, count=3):
    rng = np.random.default_rng(0)
    return [{name: rng.normal(size=value.shape) for name, value in params.items()} for _ in range(count)]
