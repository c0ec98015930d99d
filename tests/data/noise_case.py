"""Images that mean nothing."""

import numpy as np


def noise(num=60, classes=3, shape=(8, 8, 3)):
    rng = np.random.default_rng(num)
    images, labels = rng.integers(0, 256, (num, *shape), dtype=np.uint8), np.arange(num) % classes
    return {"x_train": images, "y_train": labels, "x_test": images[:9], "y_test": labels[:9]}
