"""What every test runs under: JAX made strict, two CPU devices, compiled functions kept between runs."""

import hashlib
import os
import pathlib
import runpy
from collections.abc import Iterator

import jax
import jaxlib
import pytest

# Not imported, since modules are checked only if they are imported later
_processor = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "gkd_jax" / "processor.py"))

# In the user's cache, so that the next clone finds it too. One folder for each jaxlib and kind of processor: compiled
# code of another crashes.
_CACHE = pathlib.Path(os.environ.get("GKD_TEST_CACHE", "~/.cache/gkd_jax/tests")).expanduser() / (
    f"jaxlib-{jaxlib.__version__}-{hashlib.sha256(_processor['instructions']().encode()).hexdigest()[:12]}"
)

# In the environment, so that processes that a test starts do so too: what takes a tenth of a second to compile is kept,
# and all is compiled as it comes, which takes half the time. `make test-all` tests what users run, optimised.
_KEPT = 0.1
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(_KEPT)
if not os.environ.get("GKD_TEST_OPTIMISED"):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", _KEPT)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--all`."""
    parser.addoption("--all", action="store_true", help="also run the tests that are marked exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is exhaustive."""
    if config.getoption("--all"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def key() -> jax.Array:
    """A key of the generator that compiles fastest; its numbers differ between versions of jaxlib."""
    return jax.random.key(0, impl="rbg")


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The optional folder of real CIFAR images, from GKD_DATA_DIR or beside the repository."""
    folder = pathlib.Path(os.environ.get("GKD_DATA_DIR", pathlib.Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder of CIFAR images at {folder}; set GKD_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def compilation_cache() -> pathlib.Path:
    """The folder of compiled functions, for processes that a test starts."""
    return _CACHE
