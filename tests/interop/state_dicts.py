"""The state_dict of a narrow residual network in NumPy: names and shapes as RepDistiller writes them."""

import numpy as np


def resnet(depth=8, widths=(16, 32, 64), classes=10, channels=3, seed=0):
    """Returns random arrays by name, statistics among them."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def conv(name, i, o, size):
        arrays[f"{name}.weight"] = (rng.normal(size=(o, i, size, size)) / (size * i**0.5)).astype(np.float32)

    def norm(name, width):
        for leaf, low in {"weight": 0.5, "bias": -0.5, "running_mean": -0.5, "running_var": 0.5}.items():
            arrays[f"{name}.{leaf}"] = rng.uniform(low, low + 1, width).astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", channels, widths[0], 3)
    norm("bn1", widths[0])
    i = widths[0]
    for stage, width in enumerate(widths, 1):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            conv(f"{at}.conv1", i, width, 3)
            norm(f"{at}.bn1", width)
            conv(f"{at}.conv2", width, width, 3)
            norm(f"{at}.bn2", width)
            if i != width:
                conv(f"{at}.downsample.0", i, width, 1)
                norm(f"{at}.downsample.1", width)
            i = width
    arrays["fc.weight"] = rng.normal(size=(classes, i)).astype(np.float32)
    arrays["fc.bias"] = rng.normal(size=classes).astype(np.float32)
    return arrays
