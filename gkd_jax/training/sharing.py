"""Whether seeds and batches can be shared out among all devices evenly, and among how many groups of them."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.training.devices import evenly


def groups(seeds: int, devices: int) -> int:
    """Returns among how many groups of devices the students are shared out that are "shard"ed.

    Of several processes every device has a part, so that the groups must divide the devices too.
    """
    return math.gcd(seeds, devices) if hosts.several() else evenly(seeds, min(devices, seeds))


def check_shared(config: Mapping[str, Any], devices: int | None = None) -> None:
    """Raises `UserError` where a run must share its seeds or batches among all devices evenly, and cannot.

    It must where several processes do it, and where `seed_strategy` is "shard"; else some devices may stand idle.

    Args:
      config: of the run.
      devices: how many there are; by default all that JAX knows.
    """
    seeds, asked = len(config["seeds"]), config["seed_strategy"]
    if not hosts.several() and not (seeds and asked == "shard"):
        return
    devices = jax.device_count() if devices is None else devices
    among = f"the {devices} devices" + (f" of {hosts.count()} processes" if hosts.several() else "")
    apart = groups(seeds, devices) if seeds and asked in ("auto", "shard") else 1
    if seeds and asked == "shard" and devices > 1 and (apart == 1 or devices % apart):
        raise UserError(
            f"seed_strategy is 'shard', but {among} cannot share {seeds} seeds evenly; a multiple of {devices} seeds "
            "can be shared, and 'auto' chooses another way"
        )
    if config["batch_size"] % (devices // apart):
        if apart > 1:
            among += f", {devices // apart} for each of {apart} groups of seeds"
        raise UserError(
            f"batch_size is {config['batch_size']}, which {among} cannot share evenly; it must be a multiple of "
            f"{devices // apart}"
        )
