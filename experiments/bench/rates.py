"""What the machine can do at most: the two rates that a roofline is made of.

python -m experiments.bench.rates DTYPE
"""

import json
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

_REPEATS = 7
_AT_ONCE = 20  # calls that are waited for together: each is a millisecond on a large accelerator, as is the waiting


class Rates(NamedTuple):
    """What was reached.

    Attributes:
      bytes_per_second: read and written together, by adding a number to a large array.
      flops_per_second: of a large matrix product in the benchmark's compute type.
    """

    bytes_per_second: float
    flops_per_second: float


def measure(dtype: str) -> Rates:
    """Returns the rates of the first device, the best of several repetitions."""
    small = jax.devices()[0].platform == "cpu"
    length, side = (1 << 26, 2048) if small else (1 << 29, 8192)
    stream = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = stream(jnp.zeros((length,), jnp.float32)).block_until_ready()
    at_once = 1 if small else _AT_ONCE
    moved = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(at_once):
            x = stream(x)
        x.block_until_ready()
        moved.append((time.perf_counter() - start) / at_once)
    del x
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    multiplied = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(at_once):
            last = product(matrix, matrix)
        last.block_until_ready()
        multiplied.append((time.perf_counter() - start) / at_once)
    return Rates(2 * 4 * length / min(moved), 2 * side**3 / min(multiplied))


def main() -> None:
    """Prints the platform and its rates; a process of its own gives back all that it took of the device."""
    platform, dtype = jax.devices()[0].platform, sys.argv[1]
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    sys.stdout.write(json.dumps({"platform": platform, "rates": measure(dtype)._asdict()}) + "\n")


if __name__ == "__main__":
    main()
