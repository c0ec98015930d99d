"""How XLA writes an optimised program: its instructions, and the sizes of their types."""

import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
_ARRAY = re.compile(r"\b(pred|[subf]\w*?(\d+)\w*|c\d+)\[([\d,]*)\]")
# With or without their types before them
_OPERAND = re.compile(r"%([\w.\-]+)|(?:(?<=^)|(?<=, ))([A-Za-z_][\w.\-]*)(?=,|$)")


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      name: of its result.
      kind: the type of that.
      opcode: what it does.
      operands: their names.
    """

    name: str
    kind: str
    opcode: str
    operands: tuple[str, ...]


def without_comments(text: str) -> str:
    """Returns a program without the numbers that stand between long lists."""
    return re.sub(r"/\*.*?\*/", "", text)


def instruction(line: str) -> Instruction | None:
    """Returns what a line without comments says; None if it is no instruction."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    name, kind, opcode, operands = match.groups()
    return Instruction(name, kind, opcode, tuple(typed or bare for typed, bare in _OPERAND.findall(operands)))


def array_bytes(kind: str) -> float:
    """Returns the bytes of the arrays of a type, such as `(bf16[64,10]{1,0}, u8[4096]{0})`, but for working memory."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * (int(bits) / 8 if bits else 1)
        for array, bits, shape in _ARRAY.findall(kind)
        if array != "u8"
    )
