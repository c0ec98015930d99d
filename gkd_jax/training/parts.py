"""A network's variables as files to hand on: safetensors in parts, each with its size and hash.

Parameters are rounded to bfloat16, to the nearest and of two to the even one; the statistics of BatchNorm, which are
few and small, stay float32. An array is called by its path, "params/stem/conv/kernel", and laid out as our networks
have it.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gkd_jax.errors import UserError
from gkd_jax.outputs import Variables

LARGEST = 16 * 10**6  # bytes of a part: hosts of repositories take these without a word
_TITLE = 256  # bytes that name, type, shape and place of an array take at most in the head of a file
_ROUNDED = "params"
_TYPES = {"BF16": jnp.bfloat16, "F32": np.float32}


class Part(NamedTuple):
    """A file as it has to be."""

    file: str
    bytes: int
    sha256: str


def describe(file: str, content: bytes) -> Part:
    """Returns what tells a part from another one."""
    return Part(file, len(content), hashlib.sha256(content).hexdigest())


def pack(variables: Variables, largest: int = LARGEST) -> list[bytes]:
    """Returns the contents of one file or more that hold all variables.

    Args:
      variables: of a network, of floating-point numbers.
      largest: how many bytes a file may have.

    Raises:
      UserError: if one array alone is larger.
    """
    from safetensors.numpy import save

    groups: list[dict[str, np.ndarray]] = [{}]
    size = _TITLE
    for name, array in _arrays(variables):
        rounded = np.ascontiguousarray(array, jnp.bfloat16 if name.startswith(f"{_ROUNDED}/") else np.float32)
        more = rounded.nbytes + len(name) + _TITLE
        if more + _TITLE > largest:
            raise UserError(f"{name} takes {more:,} bytes, and a part has {largest:,} at most")
        if size + more > largest:
            groups.append({})
            size = _TITLE
        groups[-1][name] = rounded
        size += more
    return [save(group) for group in groups]


def _arrays(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            yield from _arrays(value, f"{path}{name}/")
        else:
            yield f"{path}{name}", value


def read(folder: pathlib.Path, part: Part) -> bytes:
    """Returns the content of a part.

    Raises:
      UserError: if it is not there, or not what it has to be.
    """
    file = folder / part.file
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file, and the manifest beside it names it") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    if len(content) != part.bytes:
        raise UserError(f"{file}: has {len(content):,} bytes, and should have {part.bytes:,}; fetch it again")
    found = describe(part.file, content).sha256
    if found != part.sha256:
        raise UserError(f"{file}: its SHA-256 is {found}, and should be {part.sha256}; fetch it again")
    return content


def unpack(contents: Iterable[bytes]) -> dict[str, Any]:
    """Returns the variables that files hold, all in float32.

    Raises:
      UserError: if a file is not what `pack` makes.
    """
    from safetensors import SafetensorError, deserialize

    variables: dict[str, Any] = {}
    for content in contents:
        try:
            arrays = [
                (name, np.frombuffer(held["data"], _TYPES[held["dtype"]]).reshape(held["shape"]))
                for name, held in deserialize(content)
            ]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"a part is no .safetensors file of bfloat16 and float32 ({error})") from error
        for name, array in arrays:
            *folders, leaf = name.split("/")
            place = variables
            for folder in folders:
                place = place.setdefault(folder, {})
            place[leaf] = array.astype(np.float32)
    return variables
