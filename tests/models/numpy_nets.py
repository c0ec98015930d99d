"""The networks' eval mode once more, in NumPy and in the order of the papers' figures, on our variables."""

import jax
import jax.numpy as jnp
import numpy as np


def conv(x, kernel, stride=1, groups=1):
    """Slides the kernel over x, NHWC and HWIO, padded by half its side."""
    size, width, out = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((x.shape[0], rows, columns, out), x.dtype)
    for r in range(rows):
        for c in range(columns):
            window = x[:, r * stride : r * stride + size, c * stride : c * stride + size]
            for g in range(groups):
                o = slice(g * out // groups, (g + 1) * out // groups)
                y[:, r, c, o] = np.einsum("bijk,ijko->bo", window[..., g * width : (g + 1) * width], kernel[..., o])
    return y


def relu(x):
    return np.maximum(x, 0)


class Variables:
    """Parameters and statistics by path, and the layers that read them."""

    def __init__(self, variables):
        self.params, self.stats = (jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats"))

    def at(self, name):
        return Variables({"params": self.params[name], "batch_stats": self.stats.get(name, {})})

    def norm(self, name, x):
        p, s = self.params[name], self.stats[name]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def conv_norm(self, name, x, stride=1, groups=1):
        child = self.at(name)
        given = child.params["conv"]
        return child.norm("norm", conv(x, given["kernel"], stride, groups) + given.get("bias", 0))

    def linear(self, x):
        p = self.params["classifier"]
        return x.mean((1, 2)) @ p["kernel"] + p["bias"]


def max_pool_3x3(x):
    """The largest of nine, as many as there are of them at an edge, at every other position."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows[:, ::2, ::2].max((-2, -1))


def resnet(variables, x, blocks, bottleneck, imagenet=False):
    """Two basic or bottleneck stages behind the stem."""
    net = Variables(variables)
    x = relu(net.conv_norm("stem", x, 2 if imagenet else 1))
    x = max_pool_3x3(x) if imagenet else x
    for stage in (1, 2):
        for i in range(blocks[stage - 1]):
            block, stride = net.at(f"stage{stage}_block{i + 1}"), 2 if stage == 2 and i == 0 else 1
            if bottleneck:
                h = relu(block.conv_norm("conv2", relu(block.conv_norm("conv1", x)), stride))
                h = block.conv_norm("conv3", h)
            else:
                h = block.conv_norm("conv2", relu(block.conv_norm("conv1", x, stride)))
            if "shortcut" in block.params:
                x = block.conv_norm("shortcut", x, stride)
            x = relu(x + h)
    return net.linear(x)


def wide_resnet(variables, x, blocks):
    net = Variables(variables)
    x = conv(x, net.params["stem"]["kernel"])
    for stage in (1, 2, 3):
        for i in range(blocks):
            block, stride = net.at(f"stage{stage}_block{i + 1}"), 2 if stage > 1 and i == 0 else 1
            active = relu(block.norm("norm1", x))
            h = relu(block.conv_norm("conv1", active, stride))
            h = conv(h, block.params["conv2"]["kernel"])
            if "shortcut" in block.params:
                x = conv(active, block.params["shortcut"]["kernel"], stride)
            x = x + h
    return net.linear(relu(net.norm("norm", x)))


def mobilenetv2(variables, x, imagenet=False):
    def active(x):
        return np.clip(x, 0, 6 if imagenet else None)

    net = Variables(variables)
    x = active(net.conv_norm("stem", x, 2))
    second = 2 if imagenet else 1
    for group, (blocks, first) in enumerate(((1, 1), (2, second), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)), 1):
        for i in range(blocks):
            block, stride = net.at(f"group{group}_block{i + 1}"), first if i == 0 else 1
            h = x if imagenet and group == 1 else active(block.conv_norm("expand", x))
            h = active(block.conv_norm("depthwise", h, stride, groups=h.shape[-1]))
            h = block.conv_norm("project", h)
            x = x + h if i > 0 else h
    return net.linear(active(net.conv_norm("head", x)))


def mobilenetv1(variables, x, blocks, relu6=False):
    def active(x):
        return np.clip(x, 0, 6 if relu6 else None)

    net = Variables(variables)
    x = active(net.conv_norm("stem", x, 2))
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            block, stride = net.at(f"stage{stage}_block{i + 1}"), 2 if stage > 1 and i == 0 else 1
            x = active(block.conv_norm("depthwise", x, stride, groups=x.shape[-1]))
            x = active(block.conv_norm("pointwise", x))
    return net.linear(x)


def vgg(variables, x, depth):
    net = Variables(variables)
    for stage, convolutions in enumerate(depth, 1):
        for i in range(convolutions):
            x = relu(net.conv_norm(f"stage{stage}_conv{i + 1}", x))
        if stage <= 3:
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    return net.linear(x)


def deal(x, groups):
    """Channel j of group i of n goes to place j * groups + i."""
    n = x.shape[-1] // groups
    return np.stack([x[..., (place % groups) * n + place // groups] for place in range(x.shape[-1])], -1)


def average(x):
    """The mean of nine with zeros around, at every other position."""
    return conv(x, np.full((3, 3, 1, x.shape[-1]), 1 / 9), 2, groups=x.shape[-1])


def shufflenetv1(variables, x, blocks, groups):
    net = Variables(variables)
    x = relu(net.conv_norm("stem", x))
    for stage, units in enumerate(blocks, 1):
        for i in range(units):
            unit, stride, before = net.at(f"stage{stage}_block{i + 1}"), 2 if i == 0 else 1, groups
            if (stage, i) == (1, 0):
                before = 1
            h = deal(relu(unit.conv_norm("compress", x, groups=before)), before)
            h = relu(unit.conv_norm("depthwise", h, stride, groups=h.shape[-1]))
            h = unit.conv_norm("expand", h, groups=groups)
            x = relu(np.concatenate([h, average(x)], -1) if stride == 2 else h + x)
    return net.linear(x)


def shufflenetv2(variables, x, blocks):
    net = Variables(variables)
    x = relu(net.conv_norm("stem", x))
    for stage, units in enumerate(blocks, 1):
        for i in range(units):
            unit, stride = net.at(f"stage{stage}_block{i + 1}"), 2 if i == 0 else 1
            if stride == 2:
                left = unit.conv_norm("shortcut_depthwise", x, 2, groups=x.shape[-1])
                left, right = relu(unit.conv_norm("shortcut", left)), x
            else:
                left, right = np.split(x, 2, -1)
            right = relu(unit.conv_norm("conv1", right))
            right = unit.conv_norm("depthwise", right, stride, groups=right.shape[-1])
            x = deal(np.concatenate([left, relu(unit.conv_norm("conv2", right))], -1), 2)
    return net.linear(relu(net.conv_norm("head", x)))


def random_variables(model, image_shape, seed=0):
    """Returns variables of `model` with every value random, statistics too, and activations of about unit size."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            values = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif kind in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) * 0.3
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))
