"""The trials of a study: drawn by Optuna, each run to its end, and taken up again where a process was stopped."""

import contextlib
import copy
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, TrialState

from experiments.tune.space import Parameter, fields
from gkd_jax import config
from gkd_jax.errors import Diverged
from gkd_jax.recipes import tuned
from gkd_jax.reporting.files import write_json
from gkd_jax.reporting.messages import say
from gkd_jax.training import experiment, finished
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Stop

DATABASE, TRIALS, TEACHER, TEACHER_CACHE = "study.db", "trials", "teacher", "teacher_cache"
FAILED = "failed.json"
_NAME = "tune"
_SEED = 0


class Search(NamedTuple):
    """What is searched, and where.

    Attributes:
      config: as its file and the flags have it.
      parameters: of it.
      folder: of the study.
    """

    config: ConfigDict
    parameters: tuple[Parameter, ...]
    folder: pathlib.Path

    def workdir(self, number: int) -> pathlib.Path:
        """Returns where a trial is run."""
        return self.folder / TRIALS / f"{number:04}"

    def resolved(self, values: dict[str, float] | None = None) -> dict[str, Any]:
        """Returns the configuration of a trial with these values, or else of the configuration as it is, resolved."""
        c = copy.deepcopy(self.config)
        if values:
            tuned.put(c, fields(self.parameters, values))
        if c.teacher.cache != config.NO_CACHE and c.teacher.cache_dir == "auto":
            c.teacher.cache_dir = str(self.folder / TEACHER_CACHE)
        if values and c.teacher.model != config.NO_TEACHER and not c.teacher.checkpoint:
            c.teacher.checkpoint = str(self.folder / TEACHER)
        c.compare_alone = c.plots = c.tensorboard = False
        return resolve(c)


@contextlib.contextmanager
def opened(search: Search) -> Iterator[optuna.Study]:
    """Opens the study of a folder, or begins it with the configuration's own values as its first trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(search.folder / DATABASE).resolve()}")
    try:
        study = optuna.create_study(study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({p.name: p.given for p in search.parameters})
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def train_teacher(search: Search, stop: Stop | None) -> None:
    """Trains the teacher of all trials, unless the configuration brings one or has none."""
    given = search.resolved()
    if given["teacher"]["model"] == config.NO_TEACHER or given["teacher"]["checkpoint"]:
        return
    # Of the whole configuration, before hours are spent on its first part
    experiment.check_against(given, experiment.load_data(given, test=False))
    experiment.run(experiment.of_teacher(given), search.folder / TEACHER, stop, test=False)


def go_on(search: Search, study: optuna.Study, total: int, stop: Stop | None) -> Iterator[FrozenTrial]:
    """Runs trials until `total` have finished or failed, and yields each that did.

    Raises:
      Interrupted: if `stop` was requested; the trial that ran is taken up again next time.
      UserError: if something else than the loss of a trial goes wrong.
    """
    while True:
        trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if running:  # when a process ended
            number, values = running[0].number, running[0].params
            if set(values) != {p.name for p in search.parameters}:  # before it was drawn to its end: another instead
                study.tell(number, state=TrialState.FAIL)
                continue
        elif len(ended(search, study)) >= total:
            return
        else:
            # A seed for each trial: one that goes on where an earlier process was stopped draws what that would have
            study.sampler = optuna.samplers.TPESampler(seed=_SEED + _drawn(trials))
            trial = study.ask(_distributions(search.parameters))
            number, values = trial.number, trial.params
        _run(search, study, number, values, stop)
        yield study.get_trials(deepcopy=False)[number]


def _drawn(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state != TrialState.WAITING for trial in trials)


def _distributions(parameters: Sequence[Parameter]) -> dict[str, optuna.distributions.BaseDistribution]:
    return {p.name: optuna.distributions.FloatDistribution(p.low, p.high, log=p.log) for p in parameters}


def _run(search: Search, study: optuna.Study, number: int, values: dict[str, float], stop: Stop | None) -> None:
    workdir = search.workdir(number)
    try:
        summary = experiment.run(search.resolved(values), workdir, stop, test=False)
    except Diverged as error:
        write_json(workdir / FAILED, {"error": str(error)})
        study.tell(number, state=TrialState.FAIL)
        say(f"trial {number} failed: {error}")
        return
    accuracy = float(summary["student"]["val_accuracy"])
    study.tell(number, accuracy)
    say(f"trial {number}: {100 * accuracy:.2f} % of the validation images")


def ended(search: Search, study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that finished or failed, without those that a process left before they were drawn."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and error_of(search, trial))
    ]


def error_of(search: Search, trial: FrozenTrial) -> str | None:
    """Returns why a trial failed; None if it did not."""
    file = search.workdir(trial.number) / FAILED
    return str(finished.read(file)["error"]) if file.exists() else None
