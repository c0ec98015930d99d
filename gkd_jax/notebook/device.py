"""Which device the runs of a notebook will find, and what to do if it is none that is fast."""

import json
import os
import re
import subprocess
import sys

import jax

_ASK = "import json, jax; d = jax.devices(); print(json.dumps([d[0].platform, d[0].device_kind, len(d)]))"
_COLAB = "In Colab: Runtime > Change runtime type > v5e-1 TPU (or a GPU), then Runtime > Run all."
_ELSEWHERE = 'Elsewhere: pip install "jax[tpu]" or "jax[cuda12]", by what the machine has.'
_CPU = "This notebook runs here too, with small settings: GKD_SMOKE=1 in the environment, or fewer epochs."


def find_device() -> str:
    """Returns which device a run will find, as text, with what to do if that is a CPU or none.

    A process of its own asks, and lets go of the device: it is the runs that need it. This process is told to stay on
    the CPU, unless JAX has started in it already.
    """
    jax.config.update("jax_platforms", "cpu")
    found = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    version = f"jax {jax.__version__}"
    if found.returncode:
        lines = found.stderr.strip().splitlines()
        return "\n".join([f"No device: {lines[-1] if lines else 'JAX says nothing'} ({version})", _why(found.stderr)])
    platform, kind, count = json.loads(found.stdout.strip().splitlines()[-1])
    what = f"{count} x {kind} ({platform}), {version}"
    if platform != "cpu":
        return f"{what}. The runs below will use {'it' if count == 1 else 'all of them'}."
    return "\n".join([f"{what}: no TPU or GPU was found.", _why(found.stderr), _CPU])


def _why(said: str) -> str:
    """Returns what to do, by what JAX said of the accelerator that it did not find."""
    holder = re.search(r"in use by process with pid (\d+)", said)
    if holder:
        own = int(holder[1]) == os.getpid()
        who = "this notebook's own process" if own else f"the process {holder[1]}"
        return f"The TPU is held by {who}, and only one can hold it: Runtime > Restart session, then Run all."
    return _COLAB if "google.colab" in sys.modules else f"{_COLAB}\n{_ELSEWHERE}"
