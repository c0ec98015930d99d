"""What the notebooks of `experiments/notebooks` call, so that they need no logic of their own.

A run is a process of its own, by the command line that a terminal would take: only one process at a time can hold a
TPU, and what a run takes of a device it gives back when it ends, however it ends. The notebook's process itself
computes on the CPU.
"""

from gkd_jax.notebook.comparison import compare, paired
from gkd_jax.notebook.curve import explore, family
from gkd_jax.notebook.device import find_device
from gkd_jax.notebook.prepared import prepare
from gkd_jax.notebook.runs import command, train

__all__ = ["command", "compare", "explore", "family", "find_device", "paired", "prepare", "train"]
