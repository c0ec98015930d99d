"""Weights as safetensors, in our names and layout or in PyTorch's, with what is needed to use them as metadata.

Ours are read back by `load`, PyTorch's by `safetensors.torch.load_file` and `load_state_dict`, or by
`python -m gkd_jax.import_weights`. Preprocessing is not in weights: its constants, and the class names, are metadata.
"""

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax import data, models
from gkd_jax.errors import UserError
from gkd_jax.interop import names, torch
from gkd_jax.interop.served import Images, Logits, Served, network
from gkd_jax.outputs import Model, Variables

_SEPARATOR = "/"
_FORMAT = "gkd_jax"
_LISTS = ("class_names", "image_shape", "mean", "std", "final")  # as JSON: all metadata are text


class Weights(NamedTuple):
    """A network read from a file.

    Attributes:
      model: pure functions, in float32.
      variables: its own.
      class_names: in the order of the logits.
      image_shape: height, width and channels.
      mean, std: by which to normalise, see `gkd_jax.data.normalise`.
    """

    model: Model
    variables: Variables
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def logits(self, images: Images) -> Logits:
        """Returns what the network says of images, uint8 [n, h, w, c], which it normalises."""
        outputs, _ = self.model.apply(
            self.variables, data.normalise(jnp.asarray(images), self.mean, self.std), train=False
        )
        return np.asarray(outputs.logits)


def write(
    served: Served, variables: Variables, path: pathlib.Path, *, final: tuple[int, int, int] | None = None
) -> None:
    """Writes a network's variables in our names, such as "params/stage1_block1/conv1/conv/kernel".

    Args:
      served: what there is to say of the network.
      variables: its own, not folded.
      path: of the file.
      final: see `served.network`.
    """
    arrays = {
        jax.tree_util.keystr(keys, simple=True, separator=_SEPARATOR): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    _save(arrays, path, {**_about(served, _FORMAT), **({} if final is None else {"final": json.dumps(final)})})


def load(path: str | pathlib.Path, *, conv: str = "plain") -> Weights:
    """Returns the network in a file of `write`; one of the user's own must be registered.

    Args:
      path: of the file.
      conv: form of the convolutions, see `gkd_jax.models.create`.

    Raises:
      UserError: if it is damaged, of another origin, or does not fit the network that it names.
    """
    path = pathlib.Path(path)
    arrays, about = torch.read(path), metadata(path)
    if about.get("format") != _FORMAT:
        raise UserError(f"{path}: its metadata do not say that gkd_jax wrote it, with names of its own")
    try:
        known: dict[str, Any] = {name: tuple(json.loads(about[name])) for name in _LISTS if name in about}
        name, final = about["model"], known.pop("final", None)
        classes, shape, *_ = (known[name] for name in ("class_names", "image_shape", "mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its metadata are not what gkd_jax writes there ({error})") from error
    if name not in models.names():
        raise UserError(f"{path} holds a network {name!r}, which is not registered")
    model = network(name, len(classes), final=final, conv=conv)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    wanted, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, jax.random.key(0), image))
    places = [jax.tree_util.keystr(keys, simple=True, separator=_SEPARATOR) for keys, _ in wanted]
    shapes = dict(zip(places, (leaf.shape for _, leaf in wanted), strict=True))
    for place in sorted({*shapes, *arrays}):
        here, there = (arrays[place].shape if place in arrays else None), shapes.get(place)
        if here != there:
            raise UserError(f"{path}: {place} is {here or 'not there'}, and should be {there or 'not there'} in {name}")
    return Weights(model, jax.tree.unflatten(tree, [jnp.asarray(arrays[place]) for place in places]), **known)


def in_torch(model: str, variables: Variables) -> dict[str, np.ndarray] | None:
    """Returns a network's arrays in PyTorch's names and layout, the inverse of `gkd_jax.interop.torch.convert`.

    Convolutions go from HWIO to OIHW, linear layers are transposed. Where PyTorch's code has two names for a module
    ("fc" and "linear"), it is torchvision's.

    Args:
      model: the network's name.
      variables: its own, not folded.

    Returns:
      None for a network that PyTorch has not, or not under names that are known here.
    """
    table = names.table(model)
    if table is None:
        return None
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        theirs = names.torch_names(table, tuple(str(key.key) for key in keys)[1:])
        if theirs is None:
            return None
        array = np.asarray(leaf)
        found[theirs[0]] = np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)
    return found


def write_torch(served: Served, arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes what `in_torch` returned."""
    _save(arrays, path, _about(served, "pt"))


def read_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays in a file of `write_torch`, and what has read them: PyTorch where it is installed."""
    try:
        from safetensors.torch import load_file
    except (ImportError, OSError):  # OSError: an installation that lacks a library
        return torch.read(path), "gkd_jax.interop.torch"
    arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    return arrays, f"torch {importlib.metadata.version('torch')}"


def classes(path: pathlib.Path) -> tuple[str, ...] | None:
    """Returns the class names in a file of `write` or `write_torch`, None if it has none."""
    held = metadata(path).get("class_names")
    return None if held is None else tuple(json.loads(held))


def _about(served: Served, kind: str) -> dict[str, str]:
    """Returns the metadata: text, of which lists are JSON."""
    said = {name: json.dumps(getattr(served, name), ensure_ascii=False) for name in _LISTS if name != "final"}
    return {"format": kind, "model": served.name, **said}


def metadata(path: pathlib.Path) -> dict[str, str]:
    """Returns the metadata of a file, text by name."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as held:
        return held.metadata() or {}


def _save(arrays: Mapping[str, np.ndarray], path: pathlib.Path, about: Mapping[str, str]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save(dict(arrays), metadata=dict(about)))
