"""A StableHLO export in a process that has JAX and NumPy alone: `python -P jax_alone.py EXPORT IMAGES ANSWER`.

It is run as a file by `gkd_jax.interop.stablehlo`, and imports nothing of gkd_jax, so that what works here works with
those who have no gkd_jax. IMAGES is an npy, uint8 [n, h, w, c]; ANSWER becomes an npz with "logits", and the
"milliseconds" of one image.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH = 250
_WARM, _RUNS, _SECONDS = 20, 200, 5.0


def median_milliseconds(run: Callable[[], Any]) -> float:
    """Returns how long a call takes: the median of up to 200 calls, after 20 or five seconds of them to get warm."""

    def timed(count: int) -> list[float]:
        taken: list[float] = []
        while len(taken) < count and sum(taken) < _SECONDS:
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return taken

    timed(_WARM)
    return 1000 * statistics.median(timed(_RUNS))


def main(file: str, images_file: str, answer_file: str) -> None:
    """Asks the export about all images, and times it on the first of them."""
    import jax
    from jax import export

    with open(file, "rb") as held:
        network = jax.jit(export.deserialize(bytearray(held.read())).call)
    images = np.load(images_file)
    parts = [np.asarray(network(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    one = images[:1]
    took = median_milliseconds(lambda: network(one).block_until_ready())
    if "gkd_jax" in sys.modules:
        sys.exit("gkd_jax was imported")
    with open(answer_file, "wb") as answer:
        np.savez(answer, logits=np.concatenate(parts), milliseconds=took, runtime=f"jax {jax.__version__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
