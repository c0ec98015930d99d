"""Teachers that were published: found by name, their files checked, and unpacked as the run that trained them.

  --config.teacher.checkpoint=pretrained:resnet56-cifar100

They are listed in `experiments/teachers/manifest.json` of this repository, or in the `manifest.json` of the folder, or
the file, that the environment variable GKD_TEACHERS names; `python -m experiments.publish_teacher` adds one. What is
unpacked is a folder of the user's cache, or of `teacher.cache_dir`, for each content; one that is damaged is made anew.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import gkd_jax
from gkd_jax import config, hosts, models
from gkd_jax.errors import UserError, unknown
from gkd_jax.outputs import Variables
from gkd_jax.reporting.files import cannot_write, dumps, unique, write_json
from gkd_jax.training import checkpoint, finished, imported, parts

PREFIX = "pretrained:"
VARIABLE = "GKD_TEACHERS"
MANIFEST = "manifest.json"
VERSION = 1
NAME = re.compile(r"\w[\w.+-]*")
_FOLDER = "pretrained"  # in the user's cache

Entry = Mapping[str, Any]
"""What the manifest says of a teacher: "model", "seed", "recipe" (the resolved configuration of its run), "data" (which
images it was trained on: the `data.json` of its run), "variables_sha256" (of all arrays, rounded), "parts", and for
readers "dataset", "classes", "mean", "std", "test_accuracy" and more."""


def located(given: Mapping[str, Any]) -> pathlib.Path | None:
    """Returns the directory of the finished run that the configuration's block `teacher` names under "checkpoint".

    Returns:
      None if it names none.

    Raises:
      UserError: as `unpacked`.
    """
    named = given["checkpoint"]
    if not named:
        return None
    if not named.startswith(PREFIX):
        return pathlib.Path(named)
    return unpacked(named.removeprefix(PREFIX), given["cache_dir"])


def unpacked(name: str, cache_dir: str = "auto") -> pathlib.Path:
    """Returns a directory with a published teacher as a finished run; it is made if it is not there, or damaged.

    Args:
      name: in the manifest.
      cache_dir: where to keep it; "auto", and "off" too, for the user's cache.

    Raises:
      UserError: if there is no such teacher, a file of it is missing, cut short or another one, or its weights do not
        fit the network of the library; or if the folder cannot be written.
    """
    file = manifest_file()
    teachers = read(file)
    if name not in teachers:
        raise UserError(f"teacher.checkpoint: {unknown('pretrained teacher', name, teachers)} (listed in {file})")
    entry = teachers[name]
    cache = config.cache_folder("auto" if cache_dir == "off" else cache_dir, _FOLDER)
    assert cache is not None
    if cache_dir not in ("auto", "off"):  # which holds the teachers' outputs besides
        cache /= _FOLDER
    digest = hashlib.sha256(dumps(entry).encode()).hexdigest()
    folder = cache.absolute() / f"{name}-{digest[:12]}"
    if hosts.several():
        hosts.first_does(lambda: _unpack_apart(name, cache_dir))
        if not _whole(folder, entry):
            raise UserError(
                f"process {hosts.index()} of {hosts.count()} does not find in {folder} what process 0 has unpacked "
                "there; of several processes, teacher.cache_dir must be on a file system that all of them share"
            )
    elif not _whole(folder, entry):
        variables = parts.unpack([parts.read(file.parent, part) for part in _parts(entry)])
        if checkpoint.sha256(variables) != entry["variables_sha256"]:
            raise UserError(f"{file}: the parts of {name!r} hold other weights than those whose SHA-256 it tells")
        _make(folder, name, entry, variables)
    return folder


def _unpack_apart(name: str, cache_dir: str) -> None:
    """Calls `unpacked` in a process that is none of several, which write a checkpoint together or not at all."""
    call = f"pretrained.unpacked({name!r}, {cache_dir!r})"
    program = "from gkd_jax import arguments; from gkd_jax.training import pretrained; import sys; "
    program += f"sys.exit(arguments.status(lambda: str({call})))"
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(said[-1].removeprefix("gkd_jax: "))


def manifest_file() -> pathlib.Path:
    """Returns where the manifest is, or should be."""
    given = os.environ.get(VARIABLE)
    if not given:
        return pathlib.Path(gkd_jax.__file__).absolute().parents[1] / "experiments" / "teachers" / MANIFEST
    path = pathlib.Path(given).expanduser()
    return path if path.suffix == ".json" else path / MANIFEST


def read(file: pathlib.Path) -> dict[str, Entry]:
    """Returns the teachers that a manifest lists, by name.

    Raises:
      UserError: if it is not there, of another version, or not what `python -m experiments.publish_teacher` writes.
    """
    if not file.exists():
        raise UserError(f"no list of pretrained teachers at {file}; {VARIABLE} may name the folder that has one")
    held = finished.read(file)
    if held.get("version") != VERSION:
        raise UserError(f"{file} is of version {held.get('version')}, and this gkd_jax reads version {VERSION}")
    teachers = held.get("teachers")
    if not isinstance(teachers, dict):
        raise UserError(f'{file}: holds no "teachers" by name')
    for name, entry in teachers.items():
        try:
            for part in _parts(entry):
                if pathlib.PurePath(part.file).name != part.file:
                    raise ValueError(f"a file called {part.file!r}")
            run = configuration(entry)
            lacking = [key for key in ("epochs", "batch_size", "student") if key not in run]
            lacking += [key for key in ("num_examples", "class_names", "image_shape") if key not in entry["data"]]
            if lacking or not NAME.fullmatch(name) or not isinstance(entry["variables_sha256"], str):
                raise ValueError(f"no {lacking[0]!r}" if lacking else "a name or hash that is none")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: what it says of {name!r} is not what gkd_jax writes there ({error})") from error
    return teachers


def _parts(entry: Entry) -> list[parts.Part]:
    return [parts.Part(**part) for part in entry["parts"]]


def configuration(entry: Entry) -> dict[str, Any]:
    """Returns the configuration that an unpacked teacher is given: that of its run, of the one network there is.

    It computes in float32, in which its accuracy was measured; that of a student decides how it computes as a teacher.
    """
    alone = {"seed": entry["seed"], "seeds": [], "seeds_share_batches": False, "batch_seed": None}
    return {**entry["recipe"], **alone, "ema": 0.0, "dtype": "float32"}


def write(folder: pathlib.Path, name: str, entry: Entry, variables: Variables) -> None:
    """Writes a teacher as a finished run into a directory that is empty or not there.

    Raises:
      UserError: if the variables are not those of its network, or the directory cannot be written.
    """
    _check_fit(name, entry, variables)
    run = configuration(entry)
    write_json(folder / finished.CONFIG, run)
    write_json(folder / finished.DATA, entry["data"])
    imported.keep(folder, run, jax.tree.map(jnp.asarray, variables), _record(name, entry))


def _record(name: str, entry: Entry) -> dict[str, str]:
    return {"framework": "gkd_jax", "file": f"{PREFIX}{name}", "sha256": entry["variables_sha256"]}


def _check_fit(name: str, entry: Entry, variables: Variables) -> None:
    """Raises `UserError` unless variables are those of the network that they are said to be of."""
    model = entry["model"]
    if model not in models.names():
        raise UserError(f"{PREFIX}{name} is {unknown('model', model, models.names())}")
    known = entry["data"]
    network = finished.rebuilt(configuration(entry), known, len(known["class_names"]))
    images = jax.ShapeDtypeStruct((1, *known["image_shape"]), jnp.float32)
    wanted, found = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape) for path, leaf in leaves}
        for leaves in map(
            jax.tree_util.tree_leaves_with_path,
            (jax.eval_shape(network.init, jax.random.key(0), images), variables),
        )
    )
    for array in sorted({*wanted, *found}):
        if wanted.get(array) != found.get(array):
            here, there = (sizes.get(array, "not there") for sizes in (found, wanted))
            raise UserError(
                f"{PREFIX}{name} does not fit the network {model!r} of this gkd_jax: {array} is {here}, and should be "
                f"{there}"
            )


def _whole(folder: pathlib.Path, entry: Entry) -> bool:
    """Returns whether a directory holds a teacher as `write` has left it."""
    if not (folder / finished.CHECKPOINTS).is_dir():
        return False
    try:
        if finished.read(folder / finished.CONFIG) != configuration(entry):
            return False
        if _as_trained(finished.read(folder / finished.DATA)) != _as_trained(entry["data"]):
            return False
        return checkpoint.sha256(finished.load(folder).variables) == entry["variables_sha256"]
    except UserError:
        return False


def _as_trained(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in known.items() if key != imported.RECORD}


def _make(folder: pathlib.Path, name: str, entry: Entry, variables: Variables) -> None:
    """Puts a teacher into a directory, whole or not at all; another process may be doing the same."""
    made, damaged = (folder.with_name(f".{folder.name}.{unique()}.{kind}") for kind in ("tmp", "old"))
    try:
        write(made, name, entry, variables)
        try:
            if folder.exists() and not _whole(folder, entry):
                os.rename(folder, damaged)
            os.rename(made, folder)
        except OSError as error:
            if not _whole(folder, entry):  # the other process was not faster
                raise cannot_write(folder, error) from error
    finally:
        for rest in (made, damaged):
            shutil.rmtree(rest, ignore_errors=True)
