"""Networks as pure functions.

`create(name, ...)` gives a `gkd_jax.outputs.Model`; `register(name)` adds a network of one's own, of which `Conv`,
`BatchNorm`, `ConvNorm`, `Taps` and `classify` are the parts. `linen` makes a linen module into a `Model`.
"""

from gkd_jax.models import count
from gkd_jax.models.adapter import linen
from gkd_jax.models.layers import BatchNorm, Compute, Conv, ConvNorm, Taps, classify
from gkd_jax.models.registry import conv_form, create, fixed_form, names, register

# Each of these registers its networks.
from gkd_jax.models import mobilenet, mobilenet_v1, resnet, resnet_imagenet, shufflenet, vgg, wide_resnet  # isort: skip

__all__ = [
    "BatchNorm",
    "Compute",
    "Conv",
    "ConvNorm",
    "Taps",
    "classify",
    "conv_form",
    "count",
    "create",
    "fixed_form",
    "linen",
    "mobilenet",
    "mobilenet_v1",
    "names",
    "register",
    "resnet",
    "resnet_imagenet",
    "shufflenet",
    "vgg",
    "wide_resnet",
]
