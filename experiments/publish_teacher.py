"""Publishes a finished run's network as a teacher that others can name.

  python -m experiments.publish_teacher WORKDIR --name NAME [--seed SEED] [--data_dir DIR] [--note TEXT]
      [--licence NAME]
  python -m gkd_jax.main --config ... --config.teacher.checkpoint=pretrained:NAME

The weights are rounded to bfloat16 and written beside the manifest, in parts of at most 16 MB; the manifest is
experiments/teachers/manifest.json, or that which the environment variable GKD_TEACHERS names. Its accuracy is that of
the rounded weights, computed in float32 on the test images. A name is given once: another network needs another one.

  --seed      which of several students that were trained together; the first by default
  --data_dir  the folder that the run's data set is in now, if not where its configuration says
  --note      what else a reader should know: where the network comes from; needed of imported weights
  --licence   under which the weights are published, Apache-2.0 by default; needed of imported weights, whose it then is
"""

import argparse
import datetime
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from gkd_jax import identity, machine
from gkd_jax.arguments import Parser, status
from gkd_jax.data import Dataset
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_bytes, write_json
from gkd_jax.training import checkpoint, experiment, finished, imported, parts, pretrained, summary
from gkd_jax.training.workdir import same_images

ALL = 200 * 10**6  # bytes of all teachers in a manifest: what a clone of the repository may take
_LICENCE = "Apache-2.0"
_NOTE = "trained by gkd_jax from random weights; holds no image"


def publish(
    workdir: pathlib.Path,
    name: str,
    *,
    seed: int | None = None,
    data_dir: str | None = None,
    note: str | None = None,
    licence: str | None = None,
) -> str:
    """Writes a finished run's network beside the manifest and into it, and returns what there is to say of it.

    Args:
      workdir: of the run.
      name: for the manifest.
      seed: which of several students; the first by default.
      data_dir: of the run's data set; where its configuration says by default.
      note: for the manifest, where the network comes from; needed of one that was imported.
      licence: of the weights, for the manifest; needed of those that were imported.

    Raises:
      UserError: if the run is not finished, its network was imported and nothing is said of where it comes from, its
        data set is not there or another one, the name is taken by another network, or the manifest would grow too
        large.
    """
    if not pretrained.NAME.fullmatch(name):
        raise UserError(f"--name is {name!r}; it must be made of letters, digits and . + - _")
    network = finished.load(workdir, seed=seed)
    if finished.reuses(network.config):
        raise UserError(f"{workdir}: its student speaks through its teacher's classifier, which is not published")
    if imported.RECORD in network.record and not (note and licence):
        raise UserError(
            f"{workdir} holds imported weights: say where they come from by --note, and under which --licence"
        )
    file = pretrained.manifest_file()
    teachers = pretrained.read(file) if file.exists() else {}
    contents = parts.pack(network.variables)
    variables = parts.unpack(contents)
    known = checkpoint.sha256(variables)
    if name in teachers and teachers[name]["variables_sha256"] != known:
        raise UserError(f"{file} lists another network as {name!r}; choose another --name")
    entry = _entry(workdir, network, network.config["seed"] if seed is None else seed, known)
    dataset = _data(workdir, network, data_dir)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        pretrained.write(run, name, entry, variables)
        found = summary.report(dataset, run)
    files = {_file(name, i, len(contents)): content for i, content in enumerate(contents)}
    entry |= {
        **{key: found[key] for key in ("test_accuracy", "test_top5", "test_ece", "test_nll", "params")},
        "test_images": len(dataset.test_images),
        "parts": [parts.describe(part, content)._asdict() for part, content in files.items()],
        "licence": licence or _LICENCE,
        "note": note or _NOTE,
    }
    teachers = dict(sorted({**teachers, name: entry}.items()))
    total = sum(part["bytes"] for other in teachers.values() for part in other["parts"])
    if total > ALL:
        raise UserError(f"{file}: all teachers would take {total / 1e6:.1f} MB, and may take {ALL / 1e6:.0f}")
    for part, content in files.items():
        write_bytes(file.with_name(part), content)
    write_json(file, {"version": pretrained.VERSION, "teachers": teachers})
    return _said(file, name, entry, workdir)


def _file(name: str, place: int, of: int) -> str:
    return f"{name}.safetensors" if of == 1 else f"{name}.{place + 1}-of-{of}.safetensors"


def _entry(workdir: pathlib.Path, network: finished.Finished, seed: int, known: str) -> dict[str, Any]:
    """Returns what can be said of a network before it is measured."""
    closing = workdir / summary.SUMMARY
    circumstances = finished.read(closing) if closing.exists() else {}
    recipe = identity.placeless(network.config)
    return {
        "model": network.config["student"]["model"],
        "dataset": recipe["data"]["source"],
        "classes": len(network.class_names),
        "mean": [float(x) for x in network.mean],
        "std": [float(x) for x in network.std],
        "seed": seed,
        "steps": network.step,
        "seconds": summary.seconds(workdir),
        "versions": circumstances.get("versions", summary.versions()),
        "device": circumstances.get("device", summary.device()),
        "date": datetime.date.today().isoformat(),
        "variables_sha256": known,
        "recipe": recipe,
        "data": {**network.record, "source": recipe["data"]["source"]},
    }


def _data(workdir: pathlib.Path, network: finished.Finished, data_dir: str | None) -> Dataset:
    where = dict(network.config["data"])
    if data_dir and where["source"].startswith(identity.FILE):
        file = pathlib.PurePath(where["source"].removeprefix(identity.FILE))
        where["source"] = f"{identity.FILE}{pathlib.Path(data_dir) / file.name}"
    elif data_dir:
        where["data_dir"] = data_dir
    given = {"data": where}
    dataset, known = experiment.load_data(given), network.record["digest"]
    # A network that was trained before anybody read the test split knows no more than the training images
    if known != experiment.load_data(given, test=False).digest:
        same_images(workdir, dataset, known)
    return dataset


def _said(file: pathlib.Path, name: str, entry: Mapping[str, Any], workdir: pathlib.Path) -> str:
    held = sum(part["bytes"] for part in entry["parts"])
    lines = [
        f"{file}: {name}, {entry['model']} for {entry['dataset']}, {entry['params']:,} parameters, {held / 1e6:.1f} MB "
        f"in {len(entry['parts'])} file{'s' * (len(entry['parts']) > 1)}",
        f"test accuracy   {100 * entry['test_accuracy']:.2f} % of the rounded weights  ({entry['test_images']} images)",
    ]
    closing = workdir / summary.SUMMARY
    before = finished.read(closing)["student"] if closing.exists() else {}
    own = before.get("seeds", {}).get(str(entry["seed"]), before).get("test_accuracy")
    if own is not None:
        lines.append(f"                {100 * own:.2f} % before they were rounded")
    lines.append(
        f"as a teacher    --config.teacher.model={entry['model']} --config.teacher.checkpoint=pretrained:{name}"
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m experiments.publish_teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("workdir", type=pathlib.Path, metavar="WORKDIR")
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--data_dir")
    parser.add_argument("--note", help=f"where it comes from; by default {_NOTE!r}")
    parser.add_argument("--licence", help=f"by default {_LICENCE}")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command with these arguments, the program's name first; returns its exit status, 2 for a mistake."""

    def command() -> str:
        given = _parser().parse_args(argv[1:])
        logging.set_verbosity(logging.ERROR)  # libraries warn of what is no trouble
        machine.prepare()
        return publish(**vars(given))

    return status(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
