"""Runs by several processes: started once for all tests that look at what they left."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest
import together


@pytest.fixture(scope="module", autouse=True)
def _registrations() -> Iterator[None]:
    with helpers.registrations():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of the runs of a module."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def start(folder: pathlib.Path, compilation_cache: pathlib.Path) -> Callable[..., list[together.Started]]:
    """Returns a function that starts processes on the configuration of a module, in a workdir of a name."""
    file = together.write_config(folder)

    def begin(name: str, count: int, *arguments: Any, **fields: Any) -> list[together.Started]:
        given = ("--config", file, "--workdir", folder / name, *arguments)
        return together.start(count, *given, cache=compilation_cache, logs=folder / "logs", **fields)

    return begin


@pytest.fixture(scope="module")
def run(start: Callable[..., list[together.Started]]) -> Callable[..., list[together.Result]]:
    """Returns a function that does the same and waits for the end."""

    def finish(*arguments: Any, **fields: Any) -> list[together.Result]:
        return [started.result() for started in start(*arguments, **fields)]

    return finish


@pytest.fixture(scope="module")
def run_here(folder: pathlib.Path) -> Callable[..., helpers.Result]:
    """Returns a function that does it in the tests' own process, which has two devices."""

    def do(name: str, *arguments: Any) -> helpers.Result:
        return helpers.run("--config", folder / "several.py", "--workdir", folder / name, *arguments)

    return do
