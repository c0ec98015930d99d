"""The real CIFAR-10, where the optional folder of images is there."""

import importlib.util

import pytest

from gkd_jax.data import sources


@pytest.fixture(scope="session")
def cifar10(data_dir):
    """`({x_train, y_train, x_test, y_test}, class names)`, pixels and labels checked against their SHA-256."""
    spec = importlib.util.spec_from_file_location("unpack", data_dir / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    return unpack.load("cifar10", data_dir)


@pytest.fixture
def own_register(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(sources, "_REGISTERED", dict(sources._REGISTERED))
