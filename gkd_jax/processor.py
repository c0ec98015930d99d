"""What the machine's processor is called and how much of it is ours, without asking JAX."""

import os
import pathlib
import platform


def processor() -> str:
    """Returns the number of cores and, where Linux tells it, the processor's name."""
    count = f"{os.cpu_count()} cores"
    file = pathlib.Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return f"{count} of {names[0].split(':')[1].strip()}" if names else f"{count}, {platform.machine()}"


def cores() -> int:
    """Returns how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone knows what this process may use
    return len(allowed(0)) if allowed else os.cpu_count() or 1
