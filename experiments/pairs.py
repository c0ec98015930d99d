"""Writes experiments/pairs.md: every method's settings on the standard pairs, with their sources.

    python -m experiments.pairs

The table is read from the configurations themselves, so that it cannot say anything else than what is run.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from gkd_jax import config, recipes
from gkd_jax.recipes import published
from gkd_jax.training import resolve as training

HERE = pathlib.Path(__file__).parent
FILE = HERE / "pairs.md"
_SHOWN = ("resnet32x4", "resnet8x4")
_OF_LINE = ("term", "weight", "every", "view", "balance", "schedule")

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


def resolve(method: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Returns a method's objective and recipe on a pair of CIFAR-100."""
    resolved = training.resolve(recipes.standard(*pair, published.DATASET, method))
    return {
        "epochs": resolved["epochs"],
        "learning_rate": resolved["optimizer"]["learning_rate"],
        "drops": resolved["optimizer"]["drops"],
        "reuse_classifier": resolved["student"]["reuse_classifier"],
        **resolved["objective"],
    }


def text() -> str:
    """Returns the whole file."""
    rows = ["| method | cross-entropy | terms | source |", "|---|---|---|---|"]
    apart: list[str] = []
    for method in recipes.names():
        shown = resolve(method, _SHOWN)
        rows.append(f"| {method} | {_number(shown['ce']['weight'])} | {_terms(shown)} | {recipes.source(method)} |")
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
        given = {k: v for k, v in line.items() if k not in _OF_LINE}
        if line["view"] != "weak":
            given["view"] = line["view"]
        options = ", ".join(f"{k} {_value(v)}" for k, v in given.items())
        schedule = "" if line["schedule"]["name"] == "constant" else f", {_value(line['schedule'])}"
        name = label if label == line["term"] else f"{label} ({line['term']})"
        found.append(f"{name} {_number(line['weight'])}{': ' if options else ''}{options}{schedule}")
    extra = [f"{shown['epochs']} epochs, rate {shown['learning_rate']}"] if shown["epochs"] != 240 else []
    return "; ".join(found + extra) or "none"


def _apart(method: str, shown: Mapping[str, Any]) -> list[str]:
    rows = []
    reference = dict(config.leaves(shown))
    for pair in published.pairs():
        found = dict(config.leaves(resolve(method, pair)))
        light = config.standard_rate(pair[1]) != config.standard_rate("resnet")
        changed = {
            name.removeprefix("terms."): value
            for name, value in found.items()
            if value != reference[name] and not (name == "learning_rate" and light and shown["epochs"] == 240)
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
