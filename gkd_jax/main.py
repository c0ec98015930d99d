"""The command line: flags -> configuration -> one mode.

python -m gkd_jax.main --config FILE.py[:ARGUMENT] [--workdir DIR] [--mode train|eval|export|shapes|print] [--compare]
    [--format FORMATS] [--quantize int8] [--config.FIELD=VALUE ...]

  train   train the student, and before it the teacher if there is none yet; started again, it goes on (default)
  eval    the accuracy of the finished student in the workdir
  export  the finished student as files of other runtimes, each verified on the test images, in the workdir's export/
  shapes  sizes of both networks and the weight of every loss over the run; trains nothing
  print   the resolved configuration

  --compare      beside the result of train or eval: what was published of this method on this pair
  --format       of export: stablehlo, safetensors, onnx, litert, one or more with commas between
  --quantize     int8: of litert a second file, calibrated on training images
  --max_drop     test accuracy that this one may lose (0.01)
  --tolerance    by how much logits of the others may differ, as a share of the largest (1e-4; safetensors 1e-6)
  --export_seed  which student, where the run trained several; the first by default

  --coordinator=HOST:PORT --num_processes=N --process_id=0..N-1
              one run by several processes, train or eval; under Slurm and Open MPI they find each other, on Cloud TPU
              and Kubernetes with --coordinator=auto. --num_processes=1 keeps to one under any launcher.
"""

import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from gkd_jax import config, hosts, machine
from gkd_jax.command import Command, parse
from gkd_jax.errors import UserError


def execute(command: Command) -> str:
    """Does what `command` asks for, and returns what there is to print.

    Raises:
      UserError, Interrupted: see `gkd_jax.training.experiment.run`.
    """
    config.check(command.config)
    logging.set_verbosity(logging.ERROR)  # libraries warn of what is no trouble
    computes = command.mode not in ("print", "shapes")
    machine.prepare(command.config.cpu_devices, deterministic=command.config.deterministic, computes=computes)
    from gkd_jax.training.resolve import resolve

    resolved = resolve(command.config)
    if command.mode == "print":
        return json.dumps(resolved, indent=2)
    if command.mode == "shapes":
        from gkd_jax import shapes

        return shapes.describe(resolved)

    from gkd_jax.training import experiment, summary
    from gkd_jax.training.stop import Stop

    machine.keep_compiled(resolved["compilation_cache"])
    if command.export is not None:
        from gkd_jax.export import run

        return run.run(command.workdir, resolved, command.export)
    if command.mode == "eval":
        text = experiment.evaluate(command.workdir, resolved)
    else:
        with Stop() as stop:
            found = experiment.run(resolved, command.workdir, stop)
        text = f"{summary.table(found)}\n\n{found['seconds']:.1f} s of training; everything is in {command.workdir}"
    if not command.compare:
        return text
    from gkd_jax.recipes import published
    from gkd_jax.training import finished

    return f"{text}\n\n{published.compare(finished.read(command.workdir / summary.SUMMARY), resolved)}"


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a mistake, 128 + n after signal n."""
    from gkd_jax.training.stop import Interrupted

    command: Command | None = None
    try:
        command = parse(argv)
        with hosts.joined(command.joining if command else None):
            text = __doc__ if command is None else execute(command)
    except UserError as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return 2
    except Interrupted as error:
        again = command.again if command else ""
        sys.stderr.write(f"\ngkd_jax: {error}; to go on:\n  {again}\n")
        return 128 + error.signal
    except KeyboardInterrupt:  # before there was anything to save, or for the second time
        sys.stderr.write("\ngkd_jax: interrupted\n")
        return 128 + signal.SIGINT
    except OSError as error:
        sys.stderr.write(f"gkd_jax: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2
    if hosts.first():
        sys.stdout.write(f"{text}\n".lstrip("\n"))
    return 0


def console(*_: Any) -> None:
    """Entry point of the command `gkd-jax`."""
    sys.exit(hosts.leave(main(sys.argv)))


if __name__ == "__main__":
    console()
