"""Real CIFAR-10 images through a file."""

import numpy as np

from gkd_jax import data
from gkd_jax.data.dataset import channel_statistics


def test_five_hundred_images_through_npz(cifar10, tmp_path):
    arrays, classes = cifar10
    few = {name: value[:500] for name, value in arrays.items()}
    np.savez(tmp_path / "few.npz", class_names=np.array(classes), **few)
    loaded = data.load(f"npz:{tmp_path / 'few.npz'}", val_fraction=0.1, flip=True)
    assert loaded.train_images.shape == (450, 32, 32, 3)
    assert loaded.val_images.shape == (50, 32, 32, 3)
    assert list(loaded.class_names) == classes
    assert (loaded.pad, loaded.num_views) == (4, 162)
    np.testing.assert_array_equal(
        np.bincount(loaded.train_labels) + np.bincount(loaded.val_labels), np.bincount(few["y_train"])
    )
    np.testing.assert_array_equal(loaded.train_images, few["x_train"][loaded.train_rows])


def test_the_usual_constants_are_those_of_the_data(cifar10):
    mean, std = channel_statistics(cifar10[0]["x_train"])
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=1e-4)
