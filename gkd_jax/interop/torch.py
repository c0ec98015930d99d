"""PyTorch weights: read from a file, and renamed and laid out as our networks have them.

  python -m gkd_jax.import_weights WEIGHTS --model resnet32x4 --dataset cifar100 --workdir teachers/resnet32x4

writes them down as a finished run, see `gkd_jax.training.imported`. In Python:

    variables = convert("resnet32x4", read("ckpt_epoch_240.pth"))

Known are the networks of RepDistiller and mdistiller, torchvision's names for resnet18, resnet34 and resnet50 where
those have the 3x3 stem, and no max-pooling, of networks for small images, and torchvision's own resnet18, resnet50 and
mobilenet_v2 as the networks NAME_imagenet_stem.
"""

import contextlib
import functools
import pathlib
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax import models
from gkd_jax.errors import UserError, nearest, unknown
from gkd_jax.interop import names
from gkd_jax.outputs import Variables

StateDict = Mapping[str, np.ndarray]
_WRAPPINGS = ("model", "state_dict", "net")
_COUNTER = "num_batches_tracked"  # of BatchNorm; only a cumulative average, which nobody here uses, reads it
_LAST_UNSAFE = "2.5"  # up to it a file could run code in spite of `weights_only` (CVE-2025-32434)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a state_dict by name.

    A file that ends in `.safetensors` is read without PyTorch, any other one by `torch.load(..., weights_only=True)`,
    which executes nothing. The state_dict may stand in a dictionary under "model", "state_dict" or "net", and all its
    names may begin with the "module." of `DataParallel`.

    Raises:
      UserError: if there is no such file, it is damaged, it holds more than arrays and plain values, or PyTorch is
        needed and not there.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"{path}: {'not a file' if file.exists() else 'no such file'}")
    found = _from_safetensors(file) if file.suffix == ".safetensors" else _from_torch(file)
    prefix = "module."
    if all(name.startswith(prefix) for name in found):
        found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found


def _from_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(file)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: of a type that NumPy has not
        raise UserError(f"{file}: damaged, or no .safetensors file ({error})") from error
    if not found:
        raise UserError(f"{file}: holds no array")
    return found


def _from_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file}: is read by PyTorch, which is not installed: pip install 'gkd_jax[torch]', or convert the file to "
            ".safetensors, which is read without it"
        ) from error
    version = torch.__version__.split("+")[0]
    if [int(part) for part in version.split(".")[:2]] <= [int(part) for part in _LAST_UNSAFE.split(".")]:
        raise UserError(
            f"{file}: PyTorch {version} cannot read a file without trusting it; install 2.6 or above, or convert the "
            "file to .safetensors"
        )
    reason = ""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    # Whatever pickle, zipfile and PyTorch raise on bytes that are missing, wrong, or a class
    except Exception as error:
        reason = _refusal(file, " ".join(str(error).split()) or type(error).__name__)
    if reason:
        raise UserError(f"{file}: {reason}")  # not from PyTorch's error, whose advice is to load it regardless
    arrays = _unwrapped(file, loaded, torch.Tensor)
    return {
        name: (value.float() if value.is_floating_point() else value).detach().numpy() for name, value in arrays.items()
    }


def _refusal(file: pathlib.Path, said: str) -> str:
    """Returns why a file could not be loaded, from what PyTorch said."""
    if tarfile.is_tarfile(file):
        return "is an archive of files; unpack it and give the one with the weights"
    named = re.search(r"GLOBAL (\S+)", said)
    if named:
        return (
            f"holds a Python object ({named[1]}) beside its arrays, and such files are not loaded, since they may run "
            "any code; where you trust it, save the state_dict alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pth')"
        )
    return f"damaged, cut short or no file of PyTorch ({said[:200]})"


def _unwrapped(file: pathlib.Path, loaded: Any, tensor: type) -> dict[str, Any]:
    """Returns the state_dict in what a file held."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WRAPPINGS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{file}: holds {type(loaded).__name__}; it must hold a state_dict, arrays by name")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, tensor)]
    if others:
        keys, more = ", ".join(map(repr, others[:5])), ", ..." if len(others) > 5 else ""
        raise UserError(
            f"{file}: {keys}{more} there are no arrays; it must hold a state_dict, arrays by name, or one under "
            f"{', '.join(map(repr, _WRAPPINGS))}"
        )
    return dict(loaded)


def convert(model: str, state_dict: StateDict, *, num_classes: int | None = None, channels: int = 3) -> Variables:
    """Returns the variables of our network `model` with PyTorch's values.

    Convolutions go from OIHW to HWIO, linear layers are transposed, running statistics become `batch_stats`.
    The values are copied as they are, in float32, so that both networks give the same logits up to rounding.

    Args:
      model: a name of `gkd_jax.models.create`, of a family whose names are known.
      state_dict: arrays by PyTorch's names; from `read`, or `{k: v.numpy() for k, v in module.state_dict().items()}`.
      num_classes: of the network; as many as the classifier there has by default.
      channels: of its images.

    Raises:
      UserError: if the network is unknown here, or the arrays are not exactly its own; the message names the first
        that is missing, too much or of another shape, and the network that they do fit, if there is one.
    """
    if model not in models.names():
        raise unknown("model", model, models.names())
    if names.table(model) is None:
        raise UserError(f"no PyTorch names are known for {model!r}; known: {', '.join(_known())}")
    arrays = {name: array for name, array in state_dict.items() if name.rpartition(".")[2] != _COUNTER}
    wanted = _wanted(model, num_classes or _classes(model, arrays), channels)
    problem = _problem(model, wanted, arrays)
    if problem:
        fitting = _fitting(arrays, model, channels)
        raise UserError(problem + (f"; the arrays are those of {' or '.join(fitting)}" if fitting else ""))
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, _, candidates in wanted:
        name = _present(candidates, arrays)
        assert name is not None
        *folders, leaf = path
        place = variables
        for folder in folders:
            place = place.setdefault(folder, {})
        value = np.asarray(_laid_out(arrays[name]), np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{name} holds a value that is not finite")
        place[leaf] = jnp.asarray(value)
    return variables


_Wanted = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]  # path, shape, names in a state_dict


def _known() -> list[str]:
    return [name for name in models.names() if names.table(name)]


def _wanted(model: str, num_classes: int, channels: int) -> list[_Wanted]:
    """Returns every array of our network."""
    return [
        (path, (*shape[:-1], num_classes) if path[1] == "classifier" else shape, candidates)
        for path, shape, candidates in _traced(model, channels)
    ]


@functools.cache  # of one number of classes: a mistake asks for all networks
def _traced(model: str, channels: int) -> tuple[_Wanted, ...]:
    table = names.table(model)
    assert table is not None
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(models.create(model, num_classes=2).init, jax.random.key(0), image)
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(str(key.key) for key in keys)
        candidates = names.torch_names(table, path[1:])
        if candidates is None:
            raise UserError(f"no PyTorch name is known for {'/'.join(path[1:])} of {model}")
        found.append((path, leaf.shape, candidates))
    return tuple(found)


def _classes(model: str, arrays: StateDict) -> int:
    """Returns how many classes the classifier there knows; 2 if there is none, which is said later."""
    table = names.table(model)
    assert table is not None
    name = _present(names.torch_names(table, ("classifier", "bias")) or (), arrays)
    return max(arrays[name].size, 2) if name else 2


def _present(candidates: tuple[str, ...], arrays: StateDict) -> str | None:
    return next((name for name in candidates if name in arrays), None)


def _laid_out(array: np.ndarray) -> np.ndarray:
    """Returns a kernel as we have it, or a vector as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _shape_there(shape: tuple[int, ...]) -> list[int]:
    """Returns the shape that an array of ours has in PyTorch."""
    return [shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else list(shape[::-1])


def _problem(model: str, wanted: list[_Wanted], arrays: StateDict) -> str | None:
    """Returns what keeps arrays from being those of a network, None if nothing does."""
    present = {_present(candidates, arrays): (path, shape) for path, shape, candidates in wanted}
    missing = [candidates[0] for _, _, candidates in wanted if _present(candidates, arrays) is None]
    extra = [name for name in arrays if name not in present]
    shaped = [
        (name, path, list(arrays[name].shape), _shape_there(shape))
        for name, (path, shape) in present.items()
        if name is not None and list(arrays[name].shape) != _shape_there(shape)
    ]
    for name, path, here, there in shaped:
        if "stem" in path and here[2:] == [7, 7]:
            return (
                f"{name} is {here}, and should be {there}: it is the 7x7 stem of a network for large images, and our "
                f"{model} is the one for small images, whose stem is 3x3"
            )
    if extra:
        lacks = f", which lacks {missing[0]!r}" if missing else ""
        close = nearest(extra[0], missing)
        return f"{extra[0]!r}{_and_more(extra)} there is no array of {model}{close}{lacks}{_and_more(missing)}"
    if missing:
        return f"{model} needs {missing[0]!r}{_and_more(missing)}, which the state_dict lacks"
    if shaped and all(path[1] == "classifier" and here[1:] == there[1:] for _, path, here, there in shaped):
        name, _, here, there = shaped[0]
        return f"{name} is {here}, and should be {there}: the network knows {here[0]} classes, not {there[0]}"
    if shaped:
        name, _, here, there = shaped[0]
        return f"{name} is {here}, and should be {there} in {model}{_and_more(shaped)}"
    whole = [name for name in arrays if not jnp.issubdtype(arrays[name].dtype, jnp.floating)]
    return f"{whole[0]} is of type {arrays[whole[0]].dtype}; weights are floating-point numbers" if whole else None


def _and_more(listed: list[Any]) -> str:
    return f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""


def _fitting(arrays: StateDict, tried: str, channels: int) -> list[str]:
    """Returns the other networks that arrays are those of, whatever the number of classes."""
    found = []
    for model in _known():
        with contextlib.suppress(UserError):  # of a network of the user's own that is called like one of ours
            if model != tried and not _problem(model, _wanted(model, _classes(model, arrays), channels), arrays):
                found.append(model)
    return found
