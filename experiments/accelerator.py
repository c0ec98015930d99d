"""Everything that a first accelerator should answer, in one command that needs no preparation.

python -m experiments.accelerator [--minutes 25] [--only NAME,NAME] [--extra ARGUMENTS] [--rehearse]

It measures, in the order of what matters most, until the minutes are over: the pairs and objectives that the project
promises a time for, students of several seeds, chunk lengths, and XLA's flags that may remove launches. Every figure is
written as soon as it is known: one JSON file each in experiments/results/accelerator, and a table at the end. Without
PyTorch (`pip install -e '.[bench]'`) our side alone is measured.

The minutes are those of 240 epochs of 50,000 images and an evaluation on 10,000 after each, compilation included. They
are computed from measured rates: of training steps, and of one evaluation. What the fill of a cache takes stands apart.

  --minutes    after which nothing more is begun
  --only       names of trials
  --extra      arguments for every `experiments.benchmark`
  --rehearse   run it where there is no accelerator too, to see that it works
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gkd_jax.arguments import Parser, status
from gkd_jax.errors import UserError, unknown

FOLDER = pathlib.Path(__file__).parent / "results" / "accelerator"
_EPOCHS, _EPOCH = 240, 50_000
_LEAST = 60.0  # seconds that a measurement is worth beginning with
_HEAD = "| trial | images a second | minutes for 240 epochs, tests included | promised (H200) | / field | / fastest |"


class Trial(NamedTuple):
    """One benchmark.

    Attributes:
      name: of its file.
      arguments: of `experiments.benchmark`.
      minutes: that 240 epochs, tests included, should take at most on an H200; 0 if nothing is promised.
      flags: XLA's, beside those of the environment.
    """

    name: str
    arguments: str
    minutes: float = 0.0
    flags: str = ""


_SMALL, _WIDE = "--pair resnet50,mobilenetv2_half", "--pair resnet32x4,resnet8x4"
_OURS = "--peer none"
_BUFFERS = "--xla_gpu_enable_command_buffer=+CONVOLUTION"  # beside those that XLA puts into one anyway
TRIALS = (
    Trial("small-kd", f"{_SMALL} --objective kd --settings all", 5.0),
    Trial("small-gm", f"{_SMALL} --objective kd+gm --settings field --repeats 3", 11.0),
    Trial("small-w", f"{_SMALL} --objective kd+w {_OURS}"),
    Trial("small-cg", f"{_SMALL} --objective kd+cg {_OURS}"),
    Trial("small-w-cg", f"{_SMALL} --objective kd+w+cg {_OURS}", 6.0),
    Trial("wide-kd", f"{_WIDE} --objective kd --settings field", 3.5),
    Trial("small-kd-cache", f"{_SMALL} --objective kd --cache logits {_OURS}"),
    Trial("small-kd-8-vmap", f"{_SMALL} --objective kd --cache logits --seeds 8 --seed_strategy vmap {_OURS}", 15.0),
    Trial("small-kd-8-unroll", f"{_SMALL} --objective kd --cache logits --seeds 8 --seed_strategy unroll {_OURS}"),
    Trial("small-kd-step-1", f"{_SMALL} --objective kd --steps_per_call 1 {_OURS}"),
    Trial("small-kd-step-16", f"{_SMALL} --objective kd --steps_per_call 16 {_OURS}"),
    Trial("small-kd-step-391", f"{_SMALL} --objective kd --steps_per_call 391 {_OURS}"),
    Trial("small-kd-buffers", f"{_SMALL} --objective kd {_OURS}", flags=_BUFFERS),
    Trial("small-kd-buffers-loop", f"{_SMALL} --objective kd {_OURS}", flags=f"{_BUFFERS},+WHILE"),
    Trial("small-kd-graphs-of-one", f"{_SMALL} --objective kd {_OURS}", flags="--xla_gpu_graph_min_graph_size=1"),
    Trial("small-w-ott", f"{_SMALL} --objective kd+w --solver ott {_OURS}"),
    Trial("wide-kd-8-vmap", f"{_WIDE} --objective kd --cache logits --seeds 8 --seed_strategy vmap {_OURS}"),
    Trial("wide-kd-8-unroll", f"{_WIDE} --objective kd --cache logits --seeds 8 --seed_strategy unroll {_OURS}"),
)


class Addition(NamedTuple):
    """What a term may add to a step.

    Attributes:
      what: adds it.
      base: name of the trial without it.
      more: of that with it.
      percent: of the time of a step, at most.
    """

    what: str
    base: str
    more: str
    percent: float


ADDITIONS = (
    Addition("Wasserstein", "small-kd", "small-w", 10.0),
    Addition("Classifier gradients", "small-kd", "small-cg", 5.0),
)


def run(trial: Trial, seconds: float, torch: bool, extra: list[str]) -> dict[str, Any]:
    """Returns a trial's figures, or {"failed": why}; its file is written."""
    file = FOLDER / f"{trial.name}.json"
    file.unlink(missing_ok=True)
    arguments = [*trial.arguments.split(), *extra, "--json", str(file), "--dry"]
    if not torch and "--peer" not in arguments:
        arguments += _OURS.split()
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {trial.flags}".strip()}
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {seconds:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the benchmarked processes too, which would keep the device
        process.wait()
    if status or not file.exists():
        return {"failed": f"exit status {status}"}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def row(trial: Trial, found: dict[str, Any]) -> str:
    """Returns a trial's line of the table.

    The minutes are of 240 epochs of all seeds together, with compilation and an evaluation of each seed's student after
    each epoch. The fill of a cache is added behind a plus sign, in minutes too.
    """
    if "failed" in found:
        return f"| {trial.name} | {found['failed']} | | | | |"
    ours, seeds = found["ours"], found["setup"]["seeds"]
    rate = ours["images_per_second"]
    filling = found["fill"]["seconds"] if found.get("fill") else 0.0
    # The cache of one run serves all the next: what is promised is promised from a filled one
    whole = _EPOCHS * (_EPOCH * seeds / rate + ours["evaluation_seconds"]) + ours["compile_seconds"]
    promised = f"{trial.minutes:.1f}" if trial.minutes else ""
    ratios = "".join(f" | {found[name]:.2f}" if name in found else " | " for name in ("ratio", "ratio_fastest"))
    fill = f" + {filling / 60:.1f} fill" if filling else ""
    return f"| {trial.name} | {rate:,.0f} | {whole / 60:.2f}{fill} | {promised}{ratios} |"


def additions(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each of `ADDITIONS` whose two trials were measured: what it adds, and what it may add.

    Args:
      found: what `run` returned of each trial, by name.
    """
    said = []
    for each in ADDITIONS:
        both = [found.get(name, {}) for name in (each.base, each.more)]
        if all("ours" in one for one in both):
            base, more = (one["ours"]["images_per_second"] for one in both)
            added = f"{100 * (base / more - 1):+.1f} % of the time of a KD step ({each.more} over {each.base})"
            said.append(f"{each.what}: {added}; promised: {each.percent:g} % at most.")
    return said


def platform() -> str:
    """Returns the platform that JAX finds, asked by another process: this one must leave the device's memory alone."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = found.stdout.split()
    if found.returncode or not lines:
        reason = found.stderr.strip().splitlines()
        raise UserError(f"JAX finds no device ({reason[-1] if reason else 'it says nothing'})")
    return lines[-1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m experiments.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--extra", default="")
    parser.add_argument("--rehearse", action="store_true")
    return parser


def execute(argv: Sequence[str]) -> str:
    """Runs what there is time for, and returns the table.

    Raises:
      UserError: if there is no accelerator, or no such trial.
    """
    given = _parser().parse_args(argv)
    names = [name for name in given.only.split(",") if name]
    for name in names:
        if name not in {trial.name for trial in TRIALS}:
            raise unknown("trial", name, [trial.name for trial in TRIALS])
    if not given.rehearse and platform() == "cpu":
        raise UserError(
            "there is no accelerator here, or JAX does not see it (pip install 'jax[cuda12]' or 'jax[tpu]'); on a CPU "
            "python -m experiments.benchmark measures one pair, and --rehearse shows that this command works"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch = importlib.util.find_spec("torch") is not None
    end = time.monotonic() + 60 * given.minutes
    lines, measured = [_HEAD, "|---|---|---|---|---|---|"], {}
    for trial in TRIALS:
        left = end - time.monotonic()
        if names and trial.name not in names:
            continue
        if left < _LEAST:
            break
        measured[trial.name] = run(trial, left, torch, given.extra.split())
        lines.append(row(trial, measured[trial.name]))
        sys.stderr.write(lines[-1] + "\n")
        (FOLDER / "table.md").write_text(_text(lines, measured) + "\n")
    return _text(lines, measured)


def _text(lines: Sequence[str], measured: Mapping[str, Mapping[str, Any]]) -> str:
    said = additions(measured)
    return "\n".join([*lines, *([""] if said else []), *said])


if __name__ == "__main__":
    sys.exit(status(lambda: execute(sys.argv[1:])))
