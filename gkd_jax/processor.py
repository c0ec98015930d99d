"""What the machine's processor is called and how much of it is ours, without asking JAX."""

import os
import pathlib
import platform


def processor() -> str:
    """Returns the number of cores and, where Linux tells it, the processor's name."""
    count = f"{os.cpu_count()} cores"
    name = _told("model name")
    return f"{count} of {name}" if name else f"{count}, {platform.machine()}"


# By Linux's names, the widest first
_VECTORS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 and bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}


def vectors() -> str:
    """Returns the widest vector instructions, which names such as "AMD EPYC" leave open; "" if nothing is known."""
    flags = (_told("flags") or _told("Features")).split()
    return next((name for flag, name in _VECTORS.items() if flag in flags), "")


def instructions() -> str:
    """Returns what tells the processors apart that code compiled for this one runs on."""
    return f"{platform.machine()} {_told('model name')} {_told('flags') or _told('Features')}"


def _told(field: str) -> str:
    """Returns what Linux says of the first processor, "" if nothing."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def cores() -> int:
    """Returns how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone knows what this process may use
    return len(allowed(0)) if allowed else os.cpu_count() or 1
