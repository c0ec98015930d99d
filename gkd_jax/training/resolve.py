"""From a configuration as it was written to the one that is run: every field checked and filled in."""

from typing import Any

import jax
from ml_collections import ConfigDict

from gkd_jax import config, identity, models, objective
from gkd_jax.errors import UserError, unknown
from gkd_jax.training.finished import reuses


def resolve(given: ConfigDict) -> dict[str, Any]:
    """Returns `given` as plain dictionaries, with every default filled in and what is not used left out.

    "auto" becomes the compute type of the machine at hand, and each schedule keeps its own parameters alone, so that
    the result is the record of what was run.

    Raises:
      UserError: names the field that is unknown, or of another type or range than it may be.
    """
    config.check(given)
    resolved = identity.to_json(given.to_dict())
    for field in ("teacher", "student"):
        name = resolved[field]["model"]
        known = [*models.names(), *([config.NO_TEACHER] if field == "teacher" else [])]
        if name not in known:
            raise UserError(f"{field}.model: {unknown('model', name, known)}")
    resolved["objective"] = identity.to_json(objective.resolve(resolved["objective"]))
    if resolved["dtype"] == "auto":
        resolved["dtype"] = _fast_dtype(jax.devices()[0])
    _settle_seeds(resolved)
    _check_teacher(resolved)
    return resolved


def _fast_dtype(device: Any) -> str:
    """Returns the compute type that a `jax.Device` is made for; NVIDIA's GPUs have bfloat16 from Ampere (8.0) on."""
    capability = getattr(device, "compute_capability", None)
    try:
        old = capability is not None and float(capability) < 8.0
    except ValueError:  # of another maker, such as "gfx942"
        old = False
    return "float32" if device.platform == "cpu" or old else "bfloat16"


def _settle_seeds(resolved: dict[str, Any]) -> None:
    """Leaves one way to say the same: `seed` is the first of `seeds`, and a single one of these is no list."""
    seeds = resolved["seeds"]
    if resolved["seeds_share_batches"] and len(seeds) < 2:
        raise UserError(f"seeds_share_batches = true needs two seeds or more in the field seeds, not {tuple(seeds)}")
    if seeds:
        resolved["seed"] = seeds[0]
    if len(seeds) < 2:
        resolved["seeds"] = []
    if resolved["batch_seed"] is not None and len(seeds) > 1 and not resolved["seeds_share_batches"]:
        raise UserError("batch_seed is one order for all: with several seeds it needs seeds_share_batches = true")
    own = resolved["batch_seed"] == resolved["seed"]
    if own and (resolved["seeds_share_batches"] or not resolved["seeds"]):
        resolved["batch_seed"] = None


def _check_teacher(resolved: dict[str, Any]) -> None:
    """Raises `UserError` if there is no teacher but a term that needs one."""
    if resolved["teacher"]["model"] != config.NO_TEACHER:
        return
    lines = resolved["objective"]["terms"]
    needing = [label for label, block in lines.items() if block["weight"] and objective.term_of(block).needs]
    if needing:
        raise UserError(
            f"teacher.model is {config.NO_TEACHER!r}, but objective.terms.{needing[0]} has a weight and needs a teacher"
        )
    if reuses(resolved):
        raise UserError("student.reuse_classifier is true, but teacher.model is 'none'")
    if resolved["teacher"]["checkpoint"]:
        raise UserError("teacher.checkpoint is given, but teacher.model is 'none'")
    if resolved["teacher"]["cache"] != config.NO_CACHE:
        raise UserError(f"teacher.cache is {resolved['teacher']['cache']!r}, but teacher.model is 'none'")
