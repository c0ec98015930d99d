"""The work of a step on a GPU, of which XLA counts its own kernels alone and no call into cuDNN or cuBLAS.

    python -m experiments.bench.work < SETUP

prints the multiply-adds of a setup's step, times two, as XLA counts them on a CPU before it compiles: in plain
convolutions, in float32, of one device.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# An instruction of optimised HLO: its name, the type of its result, its kind, its operands
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[subf]\w*?(\d+)\w*|c\d+)\[([\d,]*)\]")


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
    instructions = [match.groups() for match in _INSTRUCTION.finditer(re.sub(r"/\*.*?\*/", "", text))]
    sizes = {name: array_bytes(kind) for name, kind, _, _ in instructions}
    total = 0.0
    for name, _, opcode, operands in instructions:
        if opcode == "custom-call":
            read = [operand.split("%")[-1].strip() for operand in _split(operands)]
            total += 1 + sizes[name] + sum(sizes.get(operand, 0) for operand in read)
    return total


def array_bytes(kind: str) -> float:
    """Returns the bytes of the arrays of a type, such as `(bf16[64,10]{1,0}, u8[4096]{0})`, but for working memory."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * (int(bits) / 8 if bits else 1)
        for array, bits, shape in _ARRAY.findall(kind)
        if array != "u8"
    )


def _split(operands: str) -> list[str]:
    """Returns operands one by one, with or without their types."""
    return re.findall(r"%[\w.\-]+|(?:(?<=^)|(?<=, ))[A-Za-z_][\w.\-]*(?=,|$)", operands)


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
