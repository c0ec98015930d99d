"""How a benchmarked process is spoken to: a line of JSON each way, on its standard input and output.

The first line is the setup; every later one asks for some steps, `{"steps": n}`; the last, `{"finish": true}`, for what
was counted. Neither side's libraries are imported here, so that both may import it.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

# The terms of each objective, beside cross-entropy
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "kd": ("kd",),
    "kd+w": ("kd", "w"),
    "kd+cg": ("kd", "cg"),
    "kd+w+cg": ("kd", "w", "cg"),
    "kd+gm": ("kd", "gm"),
    "full": ("kd", "w", "gm"),
}


def held_in(objective: str) -> str:
    """Returns the smallest of the teacher's caches that holds all that an objective compares."""
    parts = {*OBJECTIVES[objective]}
    return "gradients" if "gm" in parts else "embedding" if {"w", "cg"} & parts else "logits"


Answer = Callable[[dict[str, Any]], None]


def answer_all(
    lines: Any,
    answer: Answer,
    run: Callable[[int], Mapping[str, Any]],
    finish: Callable[[], dict[str, Any]],
) -> None:
    """Answers `lines`, those after the setup, until one says "finish", or they end."""
    for line in lines:
        request = json.loads(line)
        if request.get("finish"):
            answer(finish())
            return
        answer(dict(run(request["steps"])))


def on_standard_streams(serve: Callable[[Any, Answer], None]) -> None:
    """Has `serve` answer the standard input."""
    # Compilers and libraries write to file descriptor 1 as well: from here on they mean the standard error
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    serve(iter(sys.stdin), answer)
