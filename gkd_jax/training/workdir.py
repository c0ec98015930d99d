"""Which run a directory belongs to: nothing is ever written over another one."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gkd_jax import hosts, identity
from gkd_jax.data import AnyDataset
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_json
from gkd_jax.training import finished

_LOCK = ".lock"
_SEEN = 90.0  # seconds after which a shared file system shows everywhere what was written: NFS looks once a minute


def claim(
    workdir: pathlib.Path,
    resolved: Mapping[str, Any],
    dataset: AnyDataset,
    teacher_sha256: str | None = None,
    teacher_final: tuple[int, int, int] | None = None,
) -> None:
    """Makes a directory the one of a run, or makes sure that it is already.

    Args:
      workdir: the directory.
      resolved: the run's configuration.
      dataset: its data.
      teacher_sha256: of the parameters of a teacher from elsewhere, which may not change under the run.
      teacher_final: height, width and channels of the teacher's final map, where the student reuses its classifier: so
        the student can be built again without the teacher.

    Raises:
      UserError: if it belongs to a run of another configuration, other data or another teacher, or cannot be written.
    """
    if check(workdir, resolved, dataset):
        known = finished.read(workdir / finished.DATA).get("teacher_sha256")
        if known != teacher_sha256:
            raise UserError(
                f"{workdir} belongs to a run whose teacher had other parameters than the one in "
                f"{resolved['teacher']['checkpoint']} has now; choose another --workdir"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be made a directory ({error.strerror})") from error
    write_json(workdir / finished.CONFIG, resolved)
    reused = {} if teacher_final is None else {finished.REUSED: teacher_final}
    write_json(workdir / finished.DATA, {**finished.facts(dataset), "teacher_sha256": teacher_sha256, **reused})


def check(workdir: pathlib.Path, resolved: Mapping[str, Any], dataset: AnyDataset) -> bool:
    """Returns whether a directory is the one of this run already; raises `UserError` if it is that of another."""
    file = workdir / finished.CONFIG
    if file.exists():
        same_run(workdir, resolved, finished.read(file))
        known = workdir / finished.DATA
        if known.exists() and finished.read(known)["digest"] != dataset.digest:
            raise UserError(
                f"{workdir} belongs to a run on other images than those of {dataset.name} now; choose another --workdir"
            )
        return known.exists()
    return False


def same_run(workdir: pathlib.Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises `UserError` unless two resolved configurations, of which the workdir holds the second, are one run."""
    changed = identity.differences(here, there)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{workdir} belongs to a run of another configuration ({'; '.join(changed[:3])}{more}); "
            "choose another --workdir, or remove this one"
        )


def same_images(workdir: pathlib.Path, dataset: AnyDataset, digest: str) -> None:
    """Raises `UserError` unless the images have the digest of those that the finished run in the workdir was on."""
    if dataset.digest != digest:
        raise UserError(f"{workdir} holds a run on other images than those of {dataset.name} now")


class AtWork(UserError):
    """Another process is at work in a directory."""


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps another run out of a directory that exists, as long as this one is at work in it.

    Of several processes that do the run together, the first one does so for all.

    Raises:
      AtWork: if another process is at work there.
      UserError: of several processes, on those that it is told by the first.
    """
    with contextlib.ExitStack() as stack:
        hosts.first_does(lambda: stack.enter_context(_locked(workdir)))
        yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows, where two runs in one directory are the user's own care
        yield
        return
    with (workdir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it does
        except BlockingIOError as error:
            raise AtWork(f"{workdir}: another process is at work on this run; wait for it, or stop it") from error
        except OSError:  # a disk without locks, as a mounted Drive may be
            pass
        yield


def held(workdir: pathlib.Path) -> bool:
    """Returns whether a process, here or on another machine, is at work in a directory: see `alone_in`."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        with (workdir / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none was ever at work, or the disk knows no locks
        return False
    return False


def shared(workdir: pathlib.Path) -> None:
    """Makes sure that all processes of a run find what the first one has written into its directory.

    Raises:
      UserError: if one does not, after what a shared file system may take.
    """
    if not hosts.several():
        return
    hosts.exchange("")
    until = time.monotonic() + _SEEN
    while not (workdir / finished.CONFIG).exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {hosts.index()} of {hosts.count()} does not find in {workdir} what process 0 wrote there; "
                "the --workdir of several processes must be on a file system that all of them share"
            )
        time.sleep(1.0)
    hosts.exchange("")
