"""Kernels of our own for XLA's CPU backend, in C++: compiled once on the machine that runs them, found again later.

`available()` compiles `convolution.cc` with the machine's C++ compiler against the headers that jaxlib brings, loads it
and tells JAX of its foreign functions; with no compiler everything runs without them, and a line says so. The library
lies in `~/.cache/gkd_jax/native`, under a hash of all that it depends on. The environment variable GKD_JAX_NATIVE
switches it off (`off`), CXX names the compiler.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import threading

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
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",))  # the second where a compiler for ARM lacks the first
_PATIENCE = 300  # seconds that a compiler may take; GCC 12 takes 8

_one_at_a_time = threading.Lock()  # without it, threads that ask at once would compile and register twice


def available() -> bool:
    """Returns whether the foreign functions are there to be called; the first call may compile them."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false"):
        return False
    with _one_at_a_time:
        return _loaded()


@functools.cache
def _loaded() -> bool:
    try:
        _register(_library())
    except _NotBuilt as error:
        say(f"convolutions on this CPU take twice as long as they could: {error}")
        return False
    return True


def _register(library: ctypes.CDLL) -> None:
    for name in _FUNCTIONS:
        for dtype in TYPES:
            function = getattr(library, f"{name}_{dtype}")
            jax.ffi.register_ffi_target(f"{name}_{dtype}", jax.ffi.pycapsule(function), platform="cpu")


class _NotBuilt(Exception):
    """Why there is no library."""


def _library() -> ctypes.CDLL:
    """Returns the library, compiled if it is not there or cannot be loaded.

    Raises:
      _NotBuilt: if there is no compiler, it fails, or nothing can be written.
    """
    compiler = _compiler()
    try:
        depends = (SOURCE.read_bytes(), _version(compiler), instructions(), jaxlib.__version__, _FLAGS)
        name = f"convolution-{_hash(repr(depends).encode())}"
        folder = cache_folder("auto", "native")
        assert folder is not None
        kept = next(
            (path for path in folder.glob(f"{name}-*.so") if path.stem == f"{name}-{_hash(path.read_bytes())}"), None
        )
        if kept:
            return _open(kept)
        say(f"compiles its CPU kernels with {compiler[0]}, once on this machine")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = pathlib.Path(beside) / "made.so"
            _compile(compiler, made)
            library = _open(made)
            # With a hash of its own, since to load a file that is cut short ends the process; and at once, since
            # another process may make the same
            made.replace(folder / f"{name}-{_hash(made.read_bytes())}.so")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        raise _NotBuilt(f"their library cannot be kept ({error})") from error
    return library


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _open(path: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _NotBuilt(f"{path} cannot be loaded ({error})") from error


def _compile(compiler: list[str], path: pathlib.Path) -> None:
    include = ("-isystem", jax.ffi.include_dir())
    for processor in _FOR_THIS_PROCESSOR:
        found = _run([*compiler, *_FLAGS, *processor, *include, str(SOURCE), "-o", str(path)])
        if found.returncode == 0:
            return
    said = found.stderr.strip().splitlines()
    why = next((line for line in said if "error" in line), said[0] if said else f"exit status {found.returncode}")
    raise _NotBuilt(f"{compiler[0]} cannot compile {SOURCE.name} ({why})")


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    try:
        candidates = [shlex.split(named)] if named else [[name] for name in _COMPILERS]
    except ValueError as error:
        raise _NotBuilt(f"CXX={named} is no command ({error})") from error
    for candidate in candidates:
        if candidate and shutil.which(candidate[0]):
            return candidate
    where = f"CXX={named}" if named else ", ".join(_COMPILERS)
    raise _NotBuilt(f"no C++ compiler was found ({where})")


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"]).stdout


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotBuilt(f"{command[0]} does not run ({error})") from error
