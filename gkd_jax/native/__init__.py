"""Kernels of our own for XLA's CPU backend, in C++: compiled once on the machine that runs them, found again later.

`available()` compiles `convolution.cc` with the machine's C++ compiler against the headers that jaxlib brings, loads it
and tells JAX of its foreign functions; with no compiler everything runs without them, and a line says so. The library
lies in `~/.cache/gkd_jax/native`, under a hash of all that it depends on. The environment variable GKD_JAX_NATIVE
switches it off (`off`), CXX names the compiler.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import jax
import jaxlib

from gkd_jax.config import cache_folder
from gkd_jax.processor import instructions
from gkd_jax.reporting.messages import say

SWITCH = "GKD_JAX_NATIVE"
SOURCE = pathlib.Path(__file__).with_name("convolution.cc")
TYPES = ("float32", "float64")
_FUNCTIONS = ("gkd_convolution", "gkd_input_gradient", "gkd_weight_gradient")
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_PATIENCE = 300  # seconds that a compiler may take; GCC 12 takes 8

_switched_off = False


def available() -> bool:
    """Returns whether the foreign functions are there to be called; the first call may compile them."""
    return not _switched_off and os.environ.get(SWITCH, "").lower() not in ("off", "0", "false") and _loaded()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Has `available` say no for a while, so that networks are made as on a machine without a compiler."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@functools.cache
def _loaded() -> bool:
    try:
        path = _built()
        library = ctypes.CDLL(str(path))
        for name in _FUNCTIONS:
            for dtype in TYPES:
                function = getattr(library, f"{name}_{dtype}")
                jax.ffi.register_ffi_target(f"{name}_{dtype}", jax.ffi.pycapsule(function), platform="cpu")
    except _NotBuilt as error:
        say(f"convolutions on this CPU take twice as long as they could: {error}")
        return False
    except (OSError, AttributeError) as error:
        say(f"convolutions on this CPU take twice as long as they could: {path} cannot be loaded ({error})")
        return False
    return True


class _NotBuilt(Exception):
    """Why there is no library."""


def _built() -> pathlib.Path:
    """Returns the library, compiled if it is not there.

    Raises:
      _NotBuilt: if there is no compiler, it fails, or nothing can be written.
    """
    compiler = _compiler()
    source = SOURCE.read_bytes()
    depends = (source, _version(compiler), instructions(), jaxlib.__version__, _FLAGS)
    name = hashlib.sha256(repr(depends).encode()).hexdigest()[:20]
    folder = cache_folder("auto", "native")
    assert folder is not None
    path = folder / f"convolution-{name}.so"
    if path.exists():
        return path
    say(f"compiles its CPU kernels with {compiler[0]}, once on this machine")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = pathlib.Path(beside) / path.name
            found = _run([*compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)])
            if found.returncode != 0:
                why = (found.stderr.strip().splitlines() or [f"exit status {found.returncode}"])[0]
                raise _NotBuilt(f"{compiler[0]} cannot compile {SOURCE.name} ({why})")
            made.replace(path)  # at once: another process may make the same
    except OSError as error:
        raise _NotBuilt(f"{folder} cannot be written ({error.strerror or error})") from error
    return path


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)] if named else [[name] for name in _COMPILERS]
    for candidate in candidates:
        if candidate and shutil.which(candidate[0]):
            return candidate
    where = f"CXX={named}" if named else ", ".join(_COMPILERS)
    raise _NotBuilt(f"no C++ compiler was found ({where})")


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"]).stdout


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotBuilt(f"{command[0]} does not run ({error})") from error
