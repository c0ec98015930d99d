"""What a run would do, without data or training: sizes of both networks, and the weight of every line over the run."""

from collections.abc import Mapping
from typing import Any

import jax

from gkd_jax import config, data, models, objective
from gkd_jax.models import count
from gkd_jax.outputs import Model
from gkd_jax.training import finished
from gkd_jax.training.teacher import final_shape

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def describe(resolved: Mapping[str, Any]) -> str:
    """Returns the report of `--mode=shapes` for a resolved configuration.

    Raises:
      UserError: if the data set cannot be described, or does not fit the configuration.
    """
    fields = resolved["data"]
    known = data.describe(
        fields["source"],
        val_fraction=fields["val_fraction"],
        num_train=fields["num_train"],
        pad=fields["pad"],
        flip=fields["flip"],
        num_classes=fields["num_classes"],
        data_dir=fields["data_dir"],
        image_size=fields["image_size"],
    )
    per_epoch = data.steps_per_epoch(known.num_train, resolved["batch_size"])
    total = per_epoch * resolved["epochs"]
    dropped = known.num_train - per_epoch * resolved["batch_size"]
    h, w, c = known.image_shape
    seen = f"{known.num_views} views an image" if fields["image_size"] is None else "random-resized crops, streamed"
    parts = [
        f"data      {known.name}: {h}x{w}x{c}, {known.num_classes} classes, {known.num_train:,} training, "
        f"{known.num_val:,} validation, {known.num_test:,} test images, {seen}",
        f"run       {resolved['epochs']} epochs of {per_epoch:,} steps = {total:,} steps of {resolved['batch_size']} "
        f"images" + (f"; the last {dropped} images of an epoch are left out" if dropped else ""),
    ]
    for role, (name, model) in _networks(resolved, known).items():
        parts += _network(role, name, model, known)
    lines = objective.build(resolved["objective"], total, config.steps_of(per_epoch, resolved["epochs"]))
    return "\n".join([*parts, "", *_weights(lines, total)])


def _networks(resolved: Mapping[str, Any], known: data.Description) -> dict[str, tuple[str, Model]]:
    """Returns name and functions of the networks of a run by role."""
    found, record = {}, {}
    name, student = resolved["teacher"]["model"], resolved["student"]["model"]
    if name != config.NO_TEACHER:
        teacher = models.create(name, num_classes=known.num_classes)
        found["teacher"] = name, teacher
        if finished.reuses(resolved):
            record[finished.REUSED] = final_shape(teacher, known.image_shape)
            student += " + projector"
    found["student"] = student, finished.rebuilt(resolved, record, known.num_classes)
    return found


def _network(role: str, name: str, model: Model, known: data.Description) -> list[str]:
    size = count.summary(model, known.image_shape)
    stages = "  ".join(f"{h}x{w}x{k}" for h, w, k in size.features)
    embedding = "" if size.embedding is None else f", embedding {size.embedding}"
    return [
        f"{role:9} {name}: {size.parameters:,} parameters, {size.macs / 1e6:,.1f} million MACs an image{embedding}",
        f"          features (height x width x channels): {stages}",
    ]


def _weights(lines: objective.Lines, total: int) -> list[str]:
    head = "weight of each line at" + " " * 6 + "".join(f"{fraction:>10.0%}" for fraction in _FRACTIONS)
    rows = [head]
    for name, weights in objective.weights_along(lines, list(_FRACTIONS), total).items():
        line = lines[name]
        every = f" every {line.every} steps, x {line.every}" if line.every > 1 else ""
        bounds = line.weight.bounds(line.weight.init)
        stages = f"   rapid from {bounds[0]:.1%} to {bounds[1]:.1%}" if bounds else ""
        if jax.tree.leaves(line.weight.init):
            stages += ", until the first epochs say otherwise"
        rows.append(f"  {name:<26}" + "".join(f"{weight:>10.4g}" for weight in weights) + every + stages)
    return rows
