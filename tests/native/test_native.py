"""The library of kernels of our own: made once, found again, and done without where it cannot be made."""

import os
import pathlib
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


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_it_is_compiled_once(look, tmp_path):
    first = look()
    assert first.stdout == "True True\n"
    assert first.stderr.count("compiles its CPU kernels") == 1
    assert len(library(tmp_path)) == 1
    again = look()
    assert (again.stdout, again.stderr) == ("True True\n", "")
    assert len(library(tmp_path)) == 1


@pytest.mark.parametrize("switch", ["off", "OFF", "0", "false"])
def test_it_can_be_switched_off(monkeypatch, switch):
    monkeypatch.setenv(native.SWITCH, switch)
    assert not native.available()


def test_it_can_be_switched_off_for_a_while(monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda: True)
    monkeypatch.delenv(native.SWITCH, raising=False)
    assert native.available()
    with native.switched_off():
        assert not native.available()
        with native.switched_off():
            pass
        assert not native.available()
    assert native.available()


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
def test_what_is_no_library_is_not_loaded(look, tmp_path):
    compiler = script(tmp_path / "c++", 'for last; do :; done; case "$*" in --version) ;; *) echo no >"$last";; esac')
    found = look(CXX=compiler)
    assert found.stdout == "False False\n"
    assert "cannot be loaded" in found.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(look, tmp_path):
    (tmp_path / ".cache").write_text("")
    found = look()
    assert found.stdout == "False False\n"
    assert f"{tmp_path / '.cache' / 'gkd_jax' / 'native'} cannot be written" in found.stderr


def test_the_source_is_part_of_the_package():
    assert native.SOURCE.parent == pathlib.Path(native.__file__).parent
    assert native.SOURCE.is_file()
