"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels, 10 classes, no download.

E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998.
"""

from typing import Any

import numpy as np

from gkd_jax.data.split import shuffled

IMAGE_SHAPE = (8, 8, 1)
CLASSES = 10
TOTAL = 1797
TEST = 359  # a fifth


def arrays() -> dict[str, Any]:
    """Returns the digits with their grey levels 0..16 spread over 0..255.

    scikit-learn has no test split. Ours is fixed: the last fifth of a permutation that never changes.
    """
    from sklearn import datasets  # slow to import, and needed for this set alone

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    order = shuffled(TOTAL, seed=0)
    train, test = order[:-TEST], order[-TEST:]
    return {
        "x_train": images[train],
        "y_train": bunch.target[train],
        "x_test": images[test],
        "y_test": bunch.target[test],
        "class_names": [str(digit) for digit in range(CLASSES)],
    }
