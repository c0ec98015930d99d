"""What a run says beside its progress: one sentence a line on the standard error stream."""

import sys

_muted = False


def mute() -> None:
    """Says nothing from now on: of several processes one speaks for all."""
    global _muted
    _muted = True


def say(text: str) -> None:
    """Writes a line."""
    if _muted:
        return
    sys.stderr.write(f"gkd_jax: {text}\n")
    sys.stderr.flush()
