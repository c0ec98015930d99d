"""`--mode=export`: writes, asks again, measures, and only then puts the files where they belong."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from gkd_jax import config, export, identity
from gkd_jax.errors import UserError
from gkd_jax.export import card, files, table
from gkd_jax.export.images import CALIBRATION, CALIBRATION_SEED
from gkd_jax.export.options import Options
from gkd_jax.export.student import Student, measured_before, opened, runner, size
from gkd_jax.interop.answer import Answer
from gkd_jax.interop.jax_alone import median_milliseconds
from gkd_jax.reporting.files import cannot_write, write_json
from gkd_jax.reporting.messages import say
from gkd_jax.training import checkpoint, finished, pretrained, summary
from gkd_jax.training.workdir import alone_in

_VERSION = 1
_SAME = ("model", "seed", "params_sha256", "config_hash")  # by which an export is known as one of the same weights


def run(workdir: pathlib.Path, resolved: Mapping[str, Any], options: Options) -> str:
    """Exports the student of a finished run into its `export/`, and returns the table of what was measured.

    What was exported of the same weights before, in other formats, stays.

    Args:
      workdir: of the run.
      resolved: the configuration that it is believed to have.
      options: what to export.

    Raises:
      UserError: if the run has not finished, a format lacks something that the network needs or is not installed, a
        file is not as good as the run's own network, or the folder is of another run. What was there before is then
        still there, and nothing else.
    """
    files.require(options)
    student = opened(workdir, resolved, options.seed)
    folder = workdir / export.FOLDER
    record = _record(student)
    with alone_in(workdir), _made(folder) as made:
        before, rows = _before(folder, record), {}
        for file in files.files(student, options):
            say(f"{file.name}: {len(student.logits):,} test images, asked again by its own runtime")
            path = made / file.name
            try:
                file.write(path)
            except OSError as error:
                raise cannot_write(folder / file.name, error) from error
            answer = file.ask(path)
            judged = files.judge(file, answer, student.logits, student.test.labels, options.max_drop)
            rows[file.kind] = _row(file, path, answer, judged)
        kept = {kind: row for kind, row in before.items() if kind not in rows and _keep(folder, made, row)}
        record["rows"] = [*_networks(student, resolved, workdir), *_in_order({**rows, **kept})]
        write_json(made / export.CLASSES, student.served.class_names)
        write_json(made / export.RECORD, record)
        text = card.text(student, record, measured_before(workdir))
        (made / export.CARD).write_text(text, encoding="utf-8")
    return f"{table.table(record)}\n\neverything is in {folder}"


def _record(student: Student) -> dict[str, Any]:
    """Returns what says of which weights an export is."""
    found, served = student.finished, student.served
    return {
        "version": _VERSION,
        "model": served.name,
        "seed": student.seed,
        "step": found.step,
        "params_sha256": checkpoint.sha256(found.variables["params"]),
        "config_hash": identity.config_hash(found.config),
        "data": found.record["source"],
        "test_images": len(student.logits),
        "image_shape": served.image_shape,
        "mean": served.mean,
        "std": served.std,
        "calibration": {"images": min(CALIBRATION, student.dataset.sizes.train), "seed": CALIBRATION_SEED},
        "versions": summary.versions(),
        "device": summary.device(),
    }


def _row(file: files.File, path: pathlib.Path, answer: Answer, judged: files.Judged) -> dict[str, Any]:
    return {
        "kind": file.kind,
        "file": file.name,
        "test_accuracy": judged.accuracy,
        "difference": judged.difference,
        "tolerance": file.tolerance,
        "bytes": path.stat().st_size,
        "milliseconds": answer.milliseconds,
        "runtime": answer.runtime,
        "sha256": _sha256(path),
    }


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _networks(student: Student, resolved: Mapping[str, Any], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of the teacher, where there was one, and of the student as the run has it."""
    measured, one = measured_before(workdir), student.test.images[:1]
    if resolved["teacher"]["model"] != config.NO_TEACHER:
        reported = measured.get("teacher") or {}
        row = {"kind": f"teacher ({resolved['teacher']['model']})", "test_accuracy": reported.get("test_accuracy")}
        with contextlib.suppress(UserError):  # that is elsewhere by now: what the summary says of it is left
            teacher = finished.load(pretrained.located(resolved["teacher"]) or workdir / "teacher")
            asked = runner(teacher)
            row |= {"bytes": size(teacher), "milliseconds": median_milliseconds(lambda: asked(one))}
        yield row
    asked = runner(student.finished)
    yield {
        "kind": f"student ({summary.title(measured.get('student') or {'model': student.served.name})})",
        "test_accuracy": student.accuracy(student.logits),
        "bytes": size(student.finished),
        "milliseconds": median_milliseconds(lambda: asked(one)),
        "runtime": f"jax {summary.versions()['jax']}",
    }


def _in_order(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of files in the order of the formats."""
    order = ("stablehlo", "safetensors", files.TORCH, "onnx", "litert", files.INT8)
    return [rows[kind] for kind in order if kind in rows]


def _before(folder: pathlib.Path, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rows of the files that a folder holds.

    Raises:
      UserError: if they are of other weights, or not of an export at all.
    """
    if not folder.exists():
        return {}
    if not (folder / export.RECORD).is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return {}
        raise UserError(
            f"{folder} is there already, and is no export of gkd_jax: it has no {export.RECORD}; move it away"
        )
    held = finished.read(folder / export.RECORD)
    other = [f"{name} {held.get(name)!r}" for name in _SAME if held.get(name) != record[name]]
    if other:
        raise UserError(f"{folder} is the export of other weights ({', '.join(other)}); move it away, or remove it")
    return {row["kind"]: row for row in held["rows"] if row.get("file")}


def _keep(folder: pathlib.Path, made: pathlib.Path, row: Mapping[str, Any]) -> bool:
    """Takes over a file of an earlier export; returns whether it is still the one that was verified."""
    path = folder / row["file"]
    if not path.is_file() or _sha256(path) != row["sha256"]:
        say(f"{path} is not what was exported, and is left out")
        return False
    shutil.copy2(path, made / path.name)
    return True


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write into, which takes the place of `folder` at the end, or is gone if anything fails."""
    made, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    if old.exists() and not folder.exists():  # of a process that was killed between the two renames below
        os.rename(old, folder)
    for left in (made, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        made.mkdir()
        yield made
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(made, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for rest in (made, old):
            shutil.rmtree(rest, ignore_errors=True)
