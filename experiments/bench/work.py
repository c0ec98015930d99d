"""The work of a step on a GPU, of which XLA counts its own kernels alone and no call into cuDNN or cuBLAS.

    python -m experiments.bench.work < SETUP

prints the multiply-adds of a setup's step, times two, as XLA counts them on a CPU before it compiles: in plain
convolutions, in float32, of one device.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from experiments.bench import hlo


def flops(setup: Mapping[str, Any], devices: int = 1) -> float | None:
    """Returns the floating-point operations of a step.

    Args:
      setup: of `experiments.bench.ours`.
      devices: that share the step; the operations are those of one.

    Returns:
      What a process on the CPU counts; None if it fails, which has then said why.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    asked = [sys.executable, "-m", "experiments.bench.work"]
    found = subprocess.run(
        asked, input=json.dumps(dict(setup)), env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    return float(found.stdout) / devices if found.returncode == 0 else None


def library_bytes(text: str) -> float:
    """Returns what XLA's count of the bytes that a program accesses lacks: those of its calls into libraries.

    Each counts as -1 there. Here it reads its operands and writes its results; a library's working memory, which is
    one of these, is left out.

    Args:
      text: the program, optimised.
    """
    lines = map(hlo.instruction, hlo.without_comments(text).splitlines())
    found = [line for line in lines if line is not None]
    sizes = {line.name: hlo.array_bytes(line.kind) for line in found}
    return sum(
        1 + sizes[line.name] + sum(sizes.get(operand, 0.0) for operand in line.operands)
        for line in found
        if line.opcode == "custom-call"
    )


def main() -> None:
    """Prints the operations of the setup on the standard input."""
    from experiments.bench.ours import program_of
    from gkd_jax import models

    setup = json.loads(sys.stdin.read())
    with models.fixed_form("plain"):
        program = program_of(setup | {"images": setup["batch"], "dtype": "float32", "cpu_devices": 1})
        state, frozen = program.initial()
        step = program.jitted_step_at(0).lower(state, program.plan(0), program.fixed(frozen))
    sys.stdout.write(f"{step.cost_analysis()['flops']}\n")


if __name__ == "__main__":
    main()
