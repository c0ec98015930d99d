"""Writes experiments/pairs.md: every method's settings on the standard pairs, with their sources.

    python -m experiments.pairs

The table is read from the configurations themselves, so that it cannot say anything else than what is run.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from gkd_jax import config, recipes
from gkd_jax.recipes import published
from gkd_jax.training import resolve as training

HERE = pathlib.Path(__file__).parent
FILE = HERE / "pairs.md"
_SHOWN = ("resnet32x4", "resnet8x4")
_OF_LINE = ("term", "weight", "schedule")  # told in other words
_USUAL = {"every": 1, "view": "weak", "balance": False}  # of a line, and not worth telling
_NAMES = ("recipe", "teacher.model", "student.model")  # which the tables are about

_CONSTANT = {"name": "constant", "value": 1.0}

HEAD = """\
# The standard pairs and every method's settings

Written by `python -m experiments.pairs` from the configurations that are run; a test keeps it so.

    python -m gkd_jax.main --config configs/cifar.py:TEACHER,STUDENT,DATASET,METHOD [--compare]

DATASET is cifar100 or cifar10, METHOD a name below or NAME+gompertz: the same with all terms but cross-entropy under a
Gompertz weight (inflection at 0.3 of the run, rate 10), which replaces a published warm-up or decay; alone and
label_smoothing have no term that could take it. `--compare` sets the result beside what was published of the
method on the pair, and says whether that was the best or the last epoch.

The recipe is RepDistiller's unless a method says otherwise: 240 epochs, batch 64, SGD with momentum 0.9 and weight
decay 5e-4 on all parameters, learning rate 0.05 (0.01 for mobile and shuffle nets), divided by ten after epochs 150,
180 and 210, crops of images padded by 4 and mirror images.

Behind a weight stand all settings of the term, those of cross-entropy where they are not its defaults.
"""

DIFFERENCES = """\
## What differs from the published code, in every method

- The last partial batch of an epoch (16 of 50,000 images at a batch of 64) is dropped; the published loops keep it.
- The learning rate drops at 150/240 of the run, which is after epoch 150, as there; warm-ups and cosines that move once
  an epoch there move at every step here.
- Of two maps of different size the larger is average-pooled to the smaller; some published codes pool one side alone,
  or resize by strided and transposed convolutions, which ours does only where a method's description says so.
- The teacher is always in eval mode, its BatchNorm folded into its convolutions. ReviewKD's and OFD's own code leave it
  in training mode.
- BatchNorm in a term's head uses the statistics of the batch, as in training there.
- Accuracies are of the last epoch. mdistiller and what was built on it publish the best test epoch, which is higher.
- bfloat16 activations on accelerators, float32 losses and parameters; float32 throughout on CPU.
"""


@functools.cache
def resolve(method: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Returns a method's configuration on a pair of CIFAR-100, the objective's fields among those of the run."""
    resolved = training.resolve(recipes.standard(*pair, published.DATASET, method))
    return {**{k: v for k, v in resolved.items() if k != "objective"}, **resolved["objective"]}


def text() -> str:
    """Returns the whole file."""
    rows = ["| method | cross-entropy | terms | instead of the recipe's | source |", "|---|---|---|---|---|"]
    apart: list[str] = []
    for method in recipes.names():
        shown = resolve(method, _SHOWN)
        lines = _line(shown["ce"]), _terms(shown), _instead(shown)
        rows.append(f"| {method} | {' | '.join(lines)} | {recipes.source(method)} |")
        apart += _apart(method, shown)
    pairs = "\n".join(f"- {teacher} to {student}" for teacher, student in published.pairs())
    return "\n".join(
        [
            HEAD,
            "## Pairs",
            "",
            pairs,
            "",
            f"## Methods, on {_SHOWN[0]} to {_SHOWN[1]}",
            "",
            *rows,
            "",
            "## Where a pair differs",
            "",
            "| method | pair | instead |",
            "|---|---|---|",
            *apart,
            "",
            DIFFERENCES,
        ]
    )


def _terms(shown: Mapping[str, Any]) -> str:
    found = []
    for label, line in shown["terms"].items():
        name = label if label == line["term"] else f"{label} ({line['term']})"
        found.append(f"{name} {_line(line)}")
    return "; ".join(found) or "none"


def _line(line: Mapping[str, Any]) -> str:
    """Returns a line's weight and all of its settings; of cross-entropy, which has few, those that are no defaults."""
    usual = {**_USUAL, "label_smoothing": 0.0} if line["term"] == "ce" else _USUAL
    given = {k: v for k, v in line.items() if k not in _OF_LINE and not (k in usual and v == usual[k])}
    options = ", ".join(f"{k} {_value(v)}" for k, v in given.items())
    schedule = "" if line["schedule"] == _CONSTANT else f", {_value(line['schedule'])}"
    return f"{_number(line['weight'])}{': ' if options else ''}{options}{schedule}"


def _instead(shown: Mapping[str, Any]) -> str:
    """Returns what a method sets outside of its lines."""
    recipe = dict(config.leaves(resolve("alone", _SHOWN)))
    found = {
        name: v for name, v in config.leaves(shown) if name not in _NAMES and not name.startswith(("ce.", "terms."))
    }
    return ", ".join(f"{_short(name)} {_value(v)}" for name, v in found.items() if v != recipe.get(name, ()))


def _short(name: str) -> str:
    for prefix in ("terms.", "optimizer.", "student."):
        name = name.removeprefix(prefix)
    return name


def _apart(method: str, shown: Mapping[str, Any]) -> list[str]:
    rows = []
    reference = dict(config.leaves(shown))
    for pair in published.pairs():
        found = dict(config.leaves(resolve(method, pair)))
        light = config.standard_rate(pair[1]) != config.standard_rate("resnet")
        changed = {
            _short(name): value
            for name, value in found.items()
            if name not in _NAMES
            and value != reference[name]
            and not (name == "optimizer.learning_rate" and light and shown["epochs"] == 240)
        }
        if changed:
            told = ", ".join(f"{name} {_value(value)}" for name, value in changed.items())
            rows.append(f"| {method} | {pair[0]} to {pair[1]} | {told} |")
    return rows


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e5 else f"{value:.0f}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join([value["name"], *(f"{_value(v)}" for k, v in value.items() if k != "name")])
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "/".join(_value(v) for v in value) or "all"
    return str(value)


if __name__ == "__main__":
    FILE.write_text(text())
