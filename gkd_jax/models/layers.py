"""What networks are built of: convolutions, BatchNorm, taps and the classifier on top."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gkd_jax.models.convolution import convolve
from gkd_jax.models.statistics import one_pass, two_passes
from gkd_jax.outputs import Outputs

BATCH_NORM_MOMENTUM = 0.9  # what PyTorch writes as 0.1
BATCH_NORM_EPSILON = 1e-5

Initializer = Callable[..., Any]
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes, as opposed to what.

    Attributes:
      dtype: of activations and of the kernels they meet, float32 or bfloat16. Parameters and statistics are float32.
      conv: form of the convolutions, one of `convolution.CONV_FORMS`; see `convolution.convolve`.
      folded: whether BatchNorm has gone into the convolutions that it follows; for evaluation only.
    """

    dtype: Any = jnp.float32
    conv: str = "matmul"
    folded: bool = False

    @property
    def one_sum(self) -> bool:
        """Whether what is summed together is one sum, as accelerators have it faster, and not several."""
        return self.conv == "matmul"


def _per_channel(values: Float[Array, " k"]) -> Float[Array, "1 1 1 k"]:
    return values[None, None, None]


class Conv(nn.Module):
    """A convolution with the parameter `kernel` [size size features_in/groups features] and perhaps `bias`.

    The padding is `size // 2` on each side whatever the stride, as PyTorch's `padding=1` for 3x3 and unlike "SAME".

    Attributes:
      features: channels out.
      size: side of the kernel.
      stride: in both directions.
      groups: the channels' groups; as many as there are channels for a depthwise convolution.
      use_bias: whether to add a bias, initially zero.
      kernel_init: by default normal with variance 2 / (size² · features), He et al. (2015, arXiv 1502.01852) for
        fan-out.
      compute: element type and form.
    """

    features: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = kaiming_fan_out
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b i j o"]:
        """Returns the convolution of `x`, in `compute.dtype`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dtype = self.compute.dtype
        x = convolve(
            x.astype(dtype),
            kernel.astype(dtype),
            stride=self.stride,
            padding=self.size // 2,
            groups=self.groups,
            form=self.compute.conv,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + _per_channel(bias.astype(dtype))
        return x


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's statistics (Ioffe & Szegedy, 2015, arXiv 1502.03167).

    `y = scale · (x - μ) / √(σ² + 1e-5) + bias`, where μ and σ² are of the batch in training and the running ones
    otherwise. Running values move by `new = 0.9 · old + 0.1 · batch`. The batch is normalised by its biased variance
    (divided by n) while the running variance receives the unbiased one (n - 1), which flax's own module does not.
    All in float32, by one of the forms of `statistics`.

    When `compute.folded`, the statistics are already in `scale` and `bias`: `y = scale · x + bias`.

    Attributes:
      compute: element type of the result, and whether statistics are folded.
    """

    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b h w k"]:
        """Returns `x` normalised; with `train`, by its own statistics, which move the running ones."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.compute.folded:
            return (wide * _per_channel(scale) + _per_channel(bias)).astype(self.compute.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        left = None
        if train:
            moved, left, mean, var = (one_pass if self.compute.one_sum else two_passes)(wide)
            n = x.size // x.shape[-1]
            unbiased = var * (n / max(n - 1, 1))
            keep = BATCH_NORM_MOMENTUM
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            moved, var = wide - _per_channel(running_mean.value), running_var.value
        slope = scale * lax.rsqrt(var + BATCH_NORM_EPSILON)
        y = moved * _per_channel(slope) + _per_channel(bias if left is None else bias - left * slope)
        return y.astype(self.compute.dtype)


class ConvNorm(nn.Module):
    """A convolution and the BatchNorm that follows it, as the children `conv` and `norm`.

    These names are what `adapter.fold_variables` looks for. When folded, only `conv` is left, with a bias.
    The attributes are those of `Conv`.
    """

    features: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = kaiming_fan_out
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the normalised convolution of `x`."""
        folded = self.compute.folded
        x = Conv(
            self.features,
            self.size,
            self.stride,
            self.groups,
            self.use_bias or folded,
            self.kernel_init,
            self.compute,
            name="conv",
        )(x)
        return x if folded else BatchNorm(self.compute, name="norm")(x, train=train)


class Taps:
    """Records what stands behind each stage of one forward pass.

    A network makes one from its `probes` and calls `x = taps(x)` after the stem and after each stage. Call number i
    adds `probes["feature:i"]`, if it is there, and what it returns is `features[i]`; so the gradient of anything
    downstream with respect to a probe of zeros is its gradient with respect to that feature.

    Attributes:
      features: the maps so far, shallow to deep.
      preact: the same before their ReLU; the map itself for stages that end without one.
    """

    def __init__(self, probes: Mapping[str, Array]):
        self._probes = dict(probes)
        self.features: list[Array] = []
        self.preact: list[Array] = []

    def __call__(self, x: Float[Array, "b h w k"], preact: Float[Array, "b h w k"] | None = None) -> Array:
        """Returns `x` plus its probe and records it, with the map `preact` that the ReLU was applied to."""
        probe = self._probes.pop(f"feature:{len(self.features)}", None)
        if probe is not None:
            x = x + probe.astype(x.dtype)
        self.features.append(x)
        self.preact.append(x if preact is None else preact)
        return x

    def check(self) -> None:
        """Raises ValueError if a probe was given that no stage took."""
        if self._probes:
            raise ValueError(f"no stage takes the probes {sorted(self._probes)}; there are {len(self.features)} stages")


def linear_bias_init(inputs: int) -> Initializer:
    """Returns PyTorch's initialiser of a linear layer's bias, uniform within ±1/√inputs."""
    bound = inputs**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# PyTorch's default for the weight of a linear layer or a convolution: uniform within ±1/√inputs, where a kernel's taps
# all are inputs. The variance is 1 / (3 · inputs).
linear_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def classify(
    final: Float[Array, "b h w d"],
    taps: Taps,
    num_classes: int,
    kernel_init: Initializer = linear_kernel_init,
    bias_init: Initializer | None = None,
) -> Outputs:
    """Returns the outputs of a network whose last map is `final`: its mean over positions, then one linear layer.

    Called in a module's compact method, it makes the child `classifier`, by default with PyTorch's initialisation.
    Embedding and logits are float32 whatever the compute type.

    Raises:
      ValueError: if a probe was given that no stage took.
    """
    taps.check()
    embedding = final.astype(jnp.promote_types(final.dtype, jnp.float32)).mean((1, 2))
    bias_init = bias_init or linear_bias_init(embedding.shape[-1])
    logits = nn.Dense(num_classes, kernel_init=kernel_init, bias_init=bias_init, name="classifier")(embedding)
    return Outputs(logits, embedding, final, tuple(taps.features), tuple(taps.preact))
