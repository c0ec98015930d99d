"""The library of kernels of our own: made once, found again, and done without where it cannot be made."""

import os
import pathlib
import shlex
import stat
import subprocess
import sys

import pytest

from gkd_jax import native

LOOK = "from gkd_jax import native; print(native.available(), native.available())"


@pytest.fixture
def look(tmp_path):
    """Returns a function that asks, in a process with a home folder of its own, and returns what is said."""

    def ask(**variables):
        env = {k: v for k, v in os.environ.items() if k not in ("CXX", native.SWITCH)}
        env |= {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **variables}
        return subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, check=True)

    return ask


def library(tmp_path):
    return sorted(path.name for path in (tmp_path / ".cache" / "gkd_jax" / "native").glob("*"))


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def compiler(tmp_path):
    """The machine's own, told to hurry."""
    return script(tmp_path / "fast", f'exec {shlex.join(native._compiler())} "$@" -O0')


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_it_is_compiled_once_and_again_where_it_is_damaged(look, compiler, tmp_path):
    first = look(CXX=compiler)
    assert first.stdout == "True True\n"
    assert first.stderr.count("compiles its CPU kernels") == 1
    assert len(library(tmp_path)) == 1
    again = look(CXX=compiler)
    assert (again.stdout, again.stderr) == ("True True\n", "")

    (name,) = library(tmp_path)
    file = tmp_path / ".cache" / "gkd_jax" / "native" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    found = look(CXX=compiler)
    assert found.stdout == "True True\n"
    assert "compiles its CPU kernels" in found.stderr
    assert look(CXX=compiler).stderr == ""
    made = {path.read_bytes() for path in file.parent.glob("*.so")}
    assert max(map(len, made)) == len(whole)


@pytest.mark.parametrize("switch", ["off", "OFF", "0", "false"])
def test_it_can_be_switched_off(monkeypatch, switch):
    monkeypatch.setenv(native.SWITCH, switch)
    assert not native.available()


@pytest.mark.slow
def test_without_a_compiler_a_line_says_so(look, tmp_path):
    found = look(CXX="no-such-compiler -x")
    assert found.stdout == "False False\n"
    assert found.stderr == (
        "gkd_jax: convolutions on this CPU take twice as long as they could: no C++ compiler was found "
        "(CXX=no-such-compiler -x)\n"
    )
    assert library(tmp_path) == []


@pytest.mark.slow
def test_a_compiler_that_fails_is_quoted(look, tmp_path):
    compiler = script(
        tmp_path / "c++", 'case "$*" in --version) ;; *) echo "error: out of patience" >&2; exit 3;; esac'
    )
    found = look(CXX=compiler)
    assert found.stdout == "False False\n"
    assert f"{compiler} cannot compile convolution.cc (error: out of patience)" in found.stderr
    assert library(tmp_path) == []


@pytest.mark.slow
def test_what_is_no_library_is_not_kept(look, tmp_path):
    compiler = script(tmp_path / "c++", 'for last; do :; done; case "$*" in --version) ;; *) echo no >"$last";; esac')
    found = look(CXX=compiler)
    assert found.stdout == "False False\n"
    assert "cannot be loaded" in found.stderr
    assert library(tmp_path) == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(look, tmp_path):
    (tmp_path / ".cache").write_text("")
    found = look()
    assert found.stdout == "False False\n"
    assert "their library cannot be kept" in found.stderr
    assert str(tmp_path / ".cache") in found.stderr


@pytest.mark.slow
def test_a_compiler_that_is_no_command_is_named(look):
    found = look(CXX="'c++")
    assert found.stdout == "False False\n"
    assert "CXX='c++ is no command" in found.stderr


def test_a_compiler_without_march_is_asked_otherwise(monkeypatch, tmp_path):
    asked = []

    def run(command):
        asked.append([flag for flag in command if flag.startswith("-m")])
        return subprocess.CompletedProcess(command, "-march=native" in command, "", "In file\nerror: what is -march?")

    monkeypatch.setattr(native, "_run", run)
    native._compile(["c++"], tmp_path / "made.so")
    assert asked == [["-march=native"], ["-mcpu=native"]]


# The widths of other processors' vectors, which GCC breaks down to those of this one. As they are written, since to
# optimise what is broken down takes a minute.
WIDTHS = """
import ctypes, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from gkd_jax import native
jax.config.update("jax_enable_x64", True)
native._FLAGS = (*native._FLAGS, "-O0", "-DGKD_VECTOR_BYTES=" + sys.argv[1])
assert native.available()
from gkd_jax.models.convolution import convolve
for c, k, stride in ((3, 8, 1), (8, 16, 2), (24, 40, 1), (32, 64, 2), (72, 8, 1)):
    rng = np.random.default_rng(0)
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 1e-5)):
        x, kernel = rng.normal(size=(3, 6, 10, c)).astype(dtype), rng.normal(size=(3, 3, c, k)).astype(dtype)
        dy = rng.normal(size=(3, 6 // stride, 10 // stride, k)).astype(dtype)
        def all_three(form):
            y, pull = jax.vjp(lambda *a: convolve(*a, stride=stride, padding=1, form=form), x, kernel)
            return y, *pull(jnp.asarray(dy))
        for ours, theirs in zip(all_three("native"), all_three("plain")):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(jnp.abs(theirs).max()))
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("width", [16, 64])
def test_vectors_of_other_processors(width, tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WIDTHS, str(width)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.stdout == "equal\n", found.stderr


def test_the_source_is_part_of_the_package():
    assert native.SOURCE.parent == pathlib.Path(native.__file__).parent
    assert native.SOURCE.is_file()
