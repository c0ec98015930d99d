"""What a run says beside its progress: one sentence a line on the standard error stream."""

import sys


def say(text: str) -> None:
    """Writes a line."""
    sys.stderr.write(f"gkd_jax: {text}\n")
    sys.stderr.flush()
