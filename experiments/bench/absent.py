"""Training steps compiled for an accelerator that is not there.

XLA compiles for a described device. Nothing runs: the result says what would be started, not how long it would take.
What is found out on a device by trying, such as a library's fastest algorithm, is left to its default.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from gkd_jax.errors import UserError

STEPS = 8  # of an epoch, and of the program: long enough to stay a loop


class Target(NamedTuple):
    """A kind of device.

    Attributes:
      platform: as JAX names it.
      topology: of one or more of them.
      options: of the description.
    """

    platform: str
    topology: str
    options: Mapping[str, str] = {}


_H200 = (pathlib.Path(__file__).parent / "h200.txtpb").read_text()
TARGETS = {
    "h200": Target("cuda", "1x1x1", {"target_config": _H200, "topology": "1x1x1"}),
    "v5e": Target("tpu", "v5e:2x2"),
}


class Compiled(NamedTuple):
    """A program for another machine.

    Attributes:
      text: its optimised HLO, a loop over steps.
      temporary: bytes of memory beside its arguments and results.
    """

    text: str
    temporary: int


def compiled(resolved: Mapping[str, Any], target: str) -> Compiled:
    """Returns the training step of a run on CIFAR-100, as it would be on one `target`.

    Args:
      resolved: its configuration, of `STEPS` steps a call; bfloat16 is what "auto" is there.
      target: of `TARGETS`.

    Raises:
      UserError: if what compiles for the target is not installed.
    """
    import jax

    from experiments import synthetic
    from gkd_jax import models
    from gkd_jax.data.residency import Residency
    from gkd_jax.training.program import Program

    class Elsewhere(Program):
        """On a device whose memory nobody can ask."""

        residency = Residency("device", "it is taken for granted")

    platform, devices = TARGETS[target].platform, _devices(TARGETS[target], target)
    images = STEPS * resolved["batch_size"]
    with models.fixed_form(models.conv_form(platform)):  # not that of this machine
        job = synthetic.job(resolved, resolved["teacher"]["model"], images=images, classes=100)
    # The arguments' shapes come from a program that is here
    here = Program(job, devices=jax.devices("cpu")[:1], platform=platform)
    if here.recall is not None:
        here.recall.how = "by epoch"
    state, frozen = here.initial()
    there = Elsewhere(job, devices=devices[:1], platform=platform)
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there.replicated),
        (state, here.plan(0), here.fixed(frozen)),
    )
    steps = there.call_at(0)
    lowered = there.jitted_step_at(0, steps).trace(*given).lower(lowering_platforms=(platform,))
    program = lowered.compile()
    return Compiled(program.as_text(), program.memory_analysis().temp_size_in_bytes)


def _devices(target: Target, name: str) -> Any:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask the cloud what machine this is
    try:
        return topologies.get_topology_desc(target.topology, target.platform, **target.options).devices
    except (NotImplementedError, RuntimeError) as error:
        needed = "in an environment of its own: pip install -c constraints.txt -e '.[aot]'"
        raise UserError(f"XLA cannot compile for {name} here; {needed} ({error})") from error
