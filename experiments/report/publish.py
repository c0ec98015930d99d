"""A copy of a report and of what it links to, small enough to be committed."""

import pathlib
from collections.abc import Iterable

from experiments.grid.tasks import FAILED, GRID, RUNS, TEACHERS
from experiments.report.collect import EXPORTED, KEPT, Found, read_grid
from experiments.report.figures import FIGURES
from gkd_jax import identity
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_bytes, write_json
from gkd_jax.training.finished import CONFIG, read

MARKDOWN, PAGE = "report.md", "report.html"


def check(found: Found, target: pathlib.Path) -> None:
    """Raises `UserError` where publishing to `target` would overwrite or orphan what is not this grid's."""
    if target.resolve() == found.folder.resolve():
        raise UserError(f"--publish: {target} is the grid's own folder; name another")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--publish: {target} is no folder")
    if not any(target.iterdir()):
        return
    if not (target / GRID).is_file():
        raise UserError(f"--publish: {target} holds something else than a published grid; name a new or empty folder")
    other = read_grid(target)
    for field in ("grid", "title"):
        if other[field] != found.grid[field]:
            raise UserError(
                f"--publish: {target} holds another grid's report ({field}: {other[field]!r}, not "
                f"{found.grid[field]!r}); name a new or empty folder"
            )
    mine = {run.place for run in found.runs}
    orphans = sorted(folder.name for folder in (target / RUNS).glob("*") if folder.name not in mine)
    if orphans:
        raise UserError(
            f"--publish: {target} holds runs that are not finished in {found.folder} ({', '.join(orphans)}); "
            "name a new or empty folder, or remove them"
        )


def publish(found: Found, pictures: Iterable[str], target: pathlib.Path) -> None:
    """Copies the report, its figures, and of each run and each shared teacher the files that it links to.

    Configurations are copied without the folders of this machine, see `gkd_jax.identity.placeless`.

    Args:
      found: what the report was made of, see `check`.
      pictures: names of its figures; others in the target's folder of figures are removed.
      target: new, empty, or of an earlier report of the same grid.

    Raises:
      UserError: see `check`, or if a file cannot be read or written.
    """
    check(found, target)
    kept = [f"{FIGURES}/{name}" for name in pictures]
    kept += [f"{RUNS}/{run.place}/{file}" for run in found.runs for file in KEPT]
    kept += [f"{RUNS}/{run.place}/{EXPORTED}" for run in found.runs if run.exported]
    kept += [f"{TEACHERS}/{name}/{file}" for name in found.teachers for file in KEPT]
    failed = [f"{FAILED}/{file.name}" for file in (found.folder / FAILED).glob("*.json")]
    for name in (*kept, *failed, MARKDOWN, PAGE, GRID):
        file = found.folder / name
        if file.name == CONFIG:
            write_json(target / name, identity.placeless(read(file)))
        else:
            write_bytes(target / name, _read(file))
    for stale in (*(target / FIGURES).glob("*.png"), *(target / FAILED).glob("*.json")):
        if f"{stale.parent.name}/{stale.name}" not in (*kept, *failed):
            stale.unlink()


def _read(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
