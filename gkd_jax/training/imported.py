"""A network that was trained elsewhere, written down as a finished run: a teacher for many students.

  python -m gkd_jax.import_weights WEIGHTS --model resnet32x4 --dataset cifar100 --workdir teachers/resnet32x4
      [--data_dir DIR] [--mean M,M,M] [--std S,S,S] [--no-evaluate]
  python -m gkd_jax.main --config configs/cifar.py:resnet32x4,resnet8x4,cifar100
      --config.teacher.checkpoint=teachers/resnet32x4

WEIGHTS is a state_dict, see `gkd_jax.interop.torch.read`. The data set is that whose training images, all of them, the
network has seen; it has to be there, since its hash is what tells later whether a student validates on the same. The
run has the configuration of configs/teacher.py, so `--mode=eval` with that file reads it; how the network was really
trained nobody knows but who trained it. `data.json` says under "imported" where the weights came from.

  --mean, --std  what the images were normalised by in training, of pixels in [0, 1]. By default, and perforce, those
                 of the data set: a teacher with others cannot share its images with a student
  --no-evaluate  do not read the test images, which takes a minute or more on a CPU
"""

import argparse
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from gkd_jax import config, data, machine
from gkd_jax.arguments import Parser, status
from gkd_jax.data import AnyDataset
from gkd_jax.errors import UserError
from gkd_jax.interop import torch
from gkd_jax.models import count
from gkd_jax.outputs import Variables
from gkd_jax.reporting.files import write_bytes, write_json
from gkd_jax.training import checkpoint, finished, summary
from gkd_jax.training.loop import METRICS
from gkd_jax.training.resolve import resolve
from gkd_jax.training.workdir import alone_in, check, claim

RECORD = "imported"  # in `data.json`: where the variables came from

Channels = Sequence[float]
_ROUNDED = 1e-4  # constants are published with four digits, those of a file are measured


def configuration(
    model: str, source: str, data_dir: str | None = None, image_size: int | None = None
) -> dict[str, Any]:
    """Returns the resolved configuration that an imported network is given: that of configs/teacher.py.

    Its compute type is float32, whatever the machine, as PyTorch's was.
    """
    given = config.default()
    given.data.source, given.data.data_dir, given.data.image_size = source, data_dir, image_size
    given.teacher.model = config.NO_TEACHER
    given.student.model = model
    given.optimizer = config.optimizer(config.standard_rate(model))
    given.dtype = "float32"
    return resolve(given)


def write(
    weights: str | pathlib.Path,
    model: str,
    source: str,
    workdir: str | pathlib.Path,
    *,
    data_dir: str | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    image_size: int | None = None,
    evaluate: bool = True,
) -> str:
    """Writes a finished run with PyTorch's weights, and returns what there is to say of it.

    Args:
      weights: a file that `gkd_jax.interop.torch.read` reads.
      model: the network that they are of.
      source: the data set that it was trained on, as `data.source`.
      workdir: a directory that is not there, or empty; nothing is written over.
      data_dir: as `data.data_dir`.
      mean: of each channel, that its training images were normalised by; by default that of the data set.
      std: likewise.
      image_size: side of the images that it takes, where they are streamed.
      evaluate: whether to write its accuracy on the test images into the summary.

    Raises:
      UserError: if the weights are not those of this network, or it was made for other classes, channels or constants
        than those of the data set, the data set is not there, or the directory is in use. Nothing is written then.
    """
    weights, workdir = pathlib.Path(weights), pathlib.Path(workdir)
    resolved = configuration(model, source, data_dir, image_size)
    arrays = torch.read(weights)
    # Before its images, which take longer to read
    known = data.describe(source, data_dir=data_dir, image_size=image_size)
    try:
        variables = torch.convert(model, arrays, num_classes=known.num_classes, channels=known.image_shape[2])
    except UserError as error:
        raise UserError(f"{weights}: {error}") from error
    dataset = data.open_data(**resolved["data"])
    _same_constants(dataset, mean, std)
    check(workdir, resolved, dataset)
    store = checkpoint.Checkpoints(workdir / finished.CHECKPOINTS)
    taken = store.latest is not None
    store.close()
    if taken:
        raise UserError(f"{workdir} holds a network already; choose another --workdir, or remove this one")
    claim(workdir, resolved, dataset)
    with alone_in(workdir):
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        record = {"framework": "torch", "file": weights.name, "sha256": digest}
        keep(workdir, resolved, variables, record)
        found = _summarised(resolved, dataset, workdir) if evaluate else None
    return _said(resolved, dataset, workdir, variables, record, found)


def keep(workdir: pathlib.Path, resolved: Mapping[str, Any], variables: Variables, record: Mapping[str, str]) -> None:
    """Makes a directory that holds `config.json` and `data.json` that of a finished run.

    Args:
      workdir: the directory.
      resolved: the content of its `config.json`.
      variables: of the network, as arrays of JAX.
      record: where they came from, for `data.json`.

    Raises:
      UserError: if it cannot be written.
    """
    known = finished.read(workdir / finished.DATA)
    write_json(workdir / finished.DATA, {**known, RECORD: record})
    write_bytes(workdir / METRICS, b"")  # no epoch was trained here
    # The step that tells a run of this configuration from one that was interrupted
    step = resolved["epochs"] * data.steps_per_epoch(known["num_examples"], resolved["batch_size"])
    store = checkpoint.Checkpoints(workdir / finished.CHECKPOINTS)
    store.save(step, variables)
    store.close()


def _same_constants(dataset: AnyDataset, mean: Channels | None, std: Channels | None) -> None:
    """Raises `UserError` unless images were normalised as those of the data set are."""
    for name, given, held in (("mean", mean, dataset.mean), ("std", std, dataset.std)):
        if given is not None and not (len(given) == len(held) and np.allclose(given, held, atol=_ROUNDED, rtol=0)):
            raise UserError(
                f"--{name} is {_numbers(given)}, but the images of {dataset.name} are normalised by {_numbers(held)}; "
                "teacher and student need the same"
            )


def _summarised(resolved: dict[str, Any], dataset: AnyDataset, workdir: pathlib.Path) -> dict[str, Any]:
    report = summary.report(dataset, workdir)
    found = {"teacher": None, "student": report, "student_alone": None, **summary.circumstances(resolved, workdir)}
    write_json(workdir / summary.SUMMARY, found)
    return found


def _said(
    resolved: dict[str, Any],
    dataset: AnyDataset,
    workdir: pathlib.Path,
    variables: Variables,
    record: dict[str, str],
    found: dict[str, Any] | None,
) -> str:
    model, parameters = resolved["student"]["model"], count.parameters(variables)
    lines = [
        f"{workdir}: {model} for {dataset.name}, {parameters:,} parameters, from {record['file']}",
        f"images          by mean {_numbers(dataset.mean)} and std {_numbers(dataset.std)}, as they must have been "
        "in its training",
    ]
    if found:
        accuracy = found["student"]["test_accuracy"]
        lines.append(f"test accuracy   {100 * accuracy:.2f} %  ({dataset.sizes.test} images)")
    lines.append(f"as a teacher    --config.teacher.model={model} --config.teacher.checkpoint={workdir}")
    return "\n".join(lines)


def _numbers(values: Channels | np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _channels(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m gkd_jax.import_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    for name in ("model", "dataset", "workdir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--mean", type=_channels, metavar="M,M,M")
    parser.add_argument("--std", type=_channels, metavar="S,S,S")
    parser.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command with these arguments, the program's name first; returns its exit status, 2 for a mistake."""

    def command() -> str:
        given = _parser().parse_args(argv[1:])
        logging.set_verbosity(logging.ERROR)  # libraries warn of what is no trouble
        machine.prepare()
        return write(
            given.weights,
            given.model,
            given.dataset,
            given.workdir,
            data_dir=given.data_dir,
            mean=given.mean,
            std=given.std,
            image_size=given.image_size,
            evaluate=given.evaluate,
        )

    return status(command)
