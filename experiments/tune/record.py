"""What a study leaves: its record, the table for the terminal, and the settings that it chose."""

import importlib.metadata
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.tune.search import Search, ended, error_of
from experiments.tune.space import fields
from gkd_jax import identity, recipes
from gkd_jax.errors import UserError
from gkd_jax.recipes import tuned
from gkd_jax.reporting.files import write_json
from gkd_jax.reporting.table import aligned
from gkd_jax.training import finished, summary

RECORD = "study.json"
ROOT = pathlib.Path(__file__).parents[2]
KEPT = pathlib.Path("experiments/results/tuning")  # below the root
_ENOUGH = 10  # finished trials, below which shares of variance say nothing


def begin(search: Search, command: str) -> dict[str, Any]:
    """Returns what a study's record begins with, and makes sure that the folder holds no other study.

    Raises:
      UserError: if it does.
    """
    resolved = search.resolved()
    record = {
        "command": command,
        "config": resolved,
        "config_hash": identity.config_hash(resolved),
        "space": [parameter._asdict() | {"fields": list(parameter.fields)} for parameter in search.parameters],
        "versions": {**summary.versions(), "optuna": importlib.metadata.version("optuna")},
        "device": summary.device(),
    }
    file = search.folder / RECORD
    if not file.exists():
        return record
    known = finished.read(file)
    changed = identity.differences(resolved, known["config"])
    if changed:
        raise UserError(f"--out: {search.folder} holds a study of another configuration ({'; '.join(changed[:3])})")
    if known["space"] != record["space"]:
        told = ", ".join(parameter["name"] for parameter in known["space"])
        raise UserError(f"--out: {search.folder} holds a study of another space, or in other bounds: {told}")
    return record


def write(search: Search, study: optuna.Study, head: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the record of a study as it stands, and returns it."""
    trials = [_trial(search, trial) for trial in ended(search, study)]
    best = max((trial for trial in trials if trial["error"] is None), key=lambda t: t["val_accuracy"], default=None)
    record = {**head, "trials": trials, "best": best, "importance": _importance(study)}
    write_json(search.folder / RECORD, record)
    return record


def _trial(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    file = search.workdir(trial.number) / summary.SUMMARY
    student = finished.read(file)["student"] if file.exists() else {}
    return {
        "number": trial.number,
        "values": {parameter.name: trial.params[parameter.name] for parameter in search.parameters},
        "val_accuracy": trial.value,
        "seeds": {seed: part["val_accuracy"] for seed, part in student.get("seeds", {}).items()},
        "error": error_of(search, trial) if trial.state == TrialState.FAIL else None,
    }


def _importance(study: optuna.Study) -> dict[str, float] | None:
    """Returns which share of the variance each parameter explains, by fANOVA; None where trials are few or alike."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < _ENOUGH or len({trial.value for trial in done}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def table(record: Mapping[str, Any]) -> str:
    """Returns what a study found, for the terminal.

    Raises:
      UserError: if no trial came to its end.
    """
    trials, best = record["trials"], record["best"]
    failed = [trial["error"] for trial in trials if trial["error"]]
    if best is None:
        raise UserError(f"all {len(trials)} trials failed, the last one so: {failed[-1]}")
    own = next((trial for trial in trials if trial["number"] == 0), None)
    importance = record["importance"] or {}
    rows = [("", "configuration", "best", "from", "to", "importance")]
    for p in record["space"]:
        name = p["name"]
        share = f"{importance[name]:.2f}" if name in importance else "-"
        rows.append((name, *(f"{x:.4g}" for x in (p["given"], best["values"][name], p["low"], p["high"])), share))
    before = "failed" if own is None or own["error"] else f"{100 * own['val_accuracy']:.2f}"
    rows.append(("validation accuracy (%)", before, f"{100 * best['val_accuracy']:.2f}", "", "", ""))
    seeds = max(len(record["config"]["seeds"]), 1)
    of = f"the mean of {seeds} seeds" if seeds > 1 else "of one seed"
    missed = f", of which {len(failed)} failed" if failed else ""
    return "\n".join(
        [
            f"{len(trials)} trials{missed}; the best is number {best['number']}. Accuracies: last epoch, {of}.",
            "",
            aligned(rows),
            "",
            "The best was chosen for its accuracy, which is therefore too high: runs with other seeds tell.",
        ]
    )


def check_keep(search: Search, name: str) -> None:
    """Raises `UserError` unless what a study finds can be kept under `name`."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--keep takes the name of a record, of letters, digits, '.', '+' and '-', not {name!r}")
    if recipes.bare(search.config.recipe or "") not in recipes.names():
        raise UserError(
            "--keep needs a method on a pair, as configs/cifar.py:TEACHER,STUDENT,DATASET,METHOD has it; the field "
            f"recipe is {search.config.recipe!r}"
        )
    file = ROOT / KEPT / f"{name}.json"
    if file.exists():
        known, here = finished.read(file), search.resolved()
        if identity.differences(here, known["config"]):
            raise UserError(f"--keep: {KEPT / file.name} is the record of another study; choose another name")


def keep(search: Search, record: Mapping[str, Any], name: str) -> str:
    """Keeps the best values of a study and its record, and returns what there is to say."""
    c, best = search.config, record["best"]
    file = KEPT / f"{name}.json"
    write_json(ROOT / file, record)
    method = c.recipe.partition("@")[0]
    key = tuned.key(c.teacher.model, c.student.model, c.data.source, method)
    before = tuned.entries()[key]["values"] if method != c.recipe else {}  # what METHOD@tuned was searched on top of
    tuned.keep(
        key,
        {
            "values": {**before, **fields(search.parameters, best["values"])},
            "study": file.as_posix(),
            "val_accuracy": best["val_accuracy"],
            "trials": len(record["trials"]),
            "changes": recipes.changes(record["config"]),
        },
    )
    return f"kept for {key}@{tuned.TUNED}; the record is {file}"
