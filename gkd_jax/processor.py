"""What the machine's processor is called, without asking JAX."""

import os
import pathlib
import platform


def processor() -> str:
    """Returns the number of cores and, where Linux tells it, the processor's name."""
    cores = f"{os.cpu_count()} cores"
    file = pathlib.Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return f"{cores} of {names[0].split(':')[1].strip()}" if names else f"{cores}, {platform.machine()}"
