"""Our training step against a plain PyTorch loop, on this machine.

python -m experiments.benchmark --pair resnet56,resnet20 --objective kd --cache none --batch 64 --peer torch --json FILE

The objective is cross-entropy with `kd` (Hinton et al.), `w` (Wasserstein), `cg` (gradients in the classifier) and `gm`
(gradients in the image); `full` is kd+w+gm. The peer (`experiments.torch_peer`) is the loop that distillation projects
have: eager, float32, the teacher's forward pass at every step; its faster settings are measured beside it. Both sides
have their images in memory, the same batch size, views, losses and optimiser, and networks nobody trained. Each is a
process of its own; they run in turn, one at a time. On CPU keep the machine quiet.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.bench import report
from experiments.bench.compare import Worker, alternate
from experiments.bench.protocol import OBJECTIVES, held_in
from gkd_jax.config import CACHES, NO_CACHE
from gkd_jax.processor import processor, vectors
from gkd_jax.reporting.files import write_json

RESULTS = pathlib.Path(__file__).parent / "results" / "benchmarks.md"
# The field's loop in either layout, then what makes it faster
SETTINGS = {
    "eager": {},
    "channels_last": {"channels_last": True},
    "compiled": {"compiled": True},
    "compiled, channels_last": {"compiled": True, "channels_last": True},
    "bf16": {"autocast": True},
    "bf16, channels_last": {"autocast": True, "channels_last": True},
    "bf16, compiled, channels_last": {"autocast": True, "compiled": True, "channels_last": True},
    "bf16, compiled, channels_last, graphs": {
        "autocast": True,
        "compiled": True,
        "channels_last": True,
        "graphs": True,
    },
}
FIELD = ("eager", "channels_last")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pair", default="resnet56,resnet20", help="TEACHER,STUDENT")
    parser.add_argument("--objective", default="kd", choices=OBJECTIVES)
    parser.add_argument("--cache", default=NO_CACHE, choices=CACHES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1, help="students that train together on our side")
    parser.add_argument("--seed_strategy", default="auto", choices=("auto", "vmap", "shard", "unroll"))
    parser.add_argument("--solver", default="unrolled", choices=("ott", "unrolled"), help="of Sinkhorn, on our side")
    parser.add_argument("--student_only", action="store_true", help="give the teacher's outputs to both sides")
    parser.add_argument("--peer", default="torch", choices=("torch", "none"))
    parser.add_argument(
        "--settings",
        default="all",
        choices=("all", "float32", "field"),
        help="of the peer: all; those in float32, for processors that emulate bfloat16; or the field's",
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="on our side")
    parser.add_argument("--repeats", type=int, default=7, help="windows of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--images", type=int, default=0, help="on our side; 50,000, on CPU 1,280")
    parser.add_argument("--cpu_devices", default="auto")
    parser.add_argument("--steps_per_call", default="auto")
    parser.add_argument("--compilation_cache", default="off")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="append the table here")
    parser.add_argument("--dry", action="store_true", help="only print the table")
    given = parser.parse_args(argv)
    needed = held_in(given.objective)
    if given.cache != NO_CACHE and not given.student_only and CACHES.index(given.cache) < CACHES.index(needed):
        parser.error(f"--cache {given.cache} does not hold all that {given.objective} compares; --cache {needed} does")
    return given


def run(given: argparse.Namespace, command: str) -> dict[str, Any]:
    """Returns the figures of a benchmark."""
    setup = _setup(given)
    limits = _rates(setup["dtype"])
    images = given.images or (1280 if limits["platform"] == "cpu" else report.EPOCH)
    ours = Worker("experiments.bench.ours", setup | {"images": images}, given.batch * given.seeds)
    peers = {}
    for name, setting in SETTINGS.items() if given.peer == "torch" else ():
        if "graphs" in setting and limits["platform"] == "cpu":
            continue
        if name in FIELD or given.settings == "all" or (given.settings == "float32" and "autocast" not in setting):
            sys.stderr.write(f"starting PyTorch, {name}\n")
            peers[name] = Worker("experiments.torch_peer.worker", setup | {"setting": setting}, given.batch)
    sys.stderr.write("measuring\n")
    able = {name: peer for name, peer in peers.items() if not peer.unsupported}
    alternate([ours, *able.values()], given.repeats, given.seconds)

    found: dict[str, Any] = {
        "setup": setup,
        "device": f"{ours.ready['device']} x {ours.ready['devices']}, {processor()}{_vectors()}",
        "versions": _versions(),
        "date": datetime.date.today().isoformat(),
        "command": command,
        "ours": report.side(ours.rates, ours.ready, ours.finish()),
        "peers": {name: {"unsupported": peer.unsupported} for name, peer in peers.items() if peer.unsupported},
    }
    for name, peer in able.items():
        found["peers"][name] = report.side(peer.rates, peer.ready, peer.finish())
        found["peers"][name]["ratio"] = report.ratio(ours.rates, peer.rates)
    found |= report.verdict(found["peers"], FIELD)
    found["roofline"] = report.roofline(found["ours"], given.batch * given.seeds, **limits["rates"])
    if ours.ready["fill"] and not given.student_only:
        found["fill"] = ours.ready["fill"]
        steady = found["ours"]["images_per_second"]
        found["whole_run"] = report.whole_run(steady, found["fill"], setup["epochs"], given.seeds)
    return found


def _setup(given: argparse.Namespace) -> dict[str, Any]:
    def number(text: str) -> Any:
        return text if text == "auto" else int(text)

    return {
        "pair": given.pair.split(","),
        "objective": given.objective,
        "batch": given.batch,
        "num_classes": given.classes,
        "cache": given.cache,
        "student_only": given.student_only,
        "seeds": given.seeds,
        "seed_strategy": given.seed_strategy,
        "solver": given.solver,
        "dtype": given.dtype,
        "epochs": 240,
        "cpu_devices": number(given.cpu_devices),
        "steps_per_call": number(given.steps_per_call),
        "compilation_cache": given.compilation_cache,
    }


def _rates(dtype: str) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-m", "experiments.bench.rates", dtype], check=True, capture_output=True, text=True
    )
    measured: dict[str, Any] = json.loads(found.stdout)
    return measured


def _vectors() -> str:
    return f" ({vectors()})" if vectors() else ""


def _versions() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known


def main(argv: Sequence[str]) -> int:
    """Measures, writes what was asked for, and prints the table."""
    given = arguments(argv)
    if given.peer == "torch" and importlib.util.find_spec("torch") is None:
        sys.stderr.write("the peer needs PyTorch: pip install -e '.[bench]', or --peer none\n")
        return 2
    found = run(given, shlex.join(["python", "-m", "experiments.benchmark", *argv]))
    text = report.table(found)
    if given.json:
        write_json(given.json, found)
    if not given.dry:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        with given.results.open("a") as file:
            file.write(f"\n{text}")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
