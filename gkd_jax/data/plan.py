"""Which example is seen at which step of an epoch, and in which view.

A plan is drawn before its epoch rather than inside the step: a cache of the teacher's outputs, a stream of images and a
resumed run all need to know it beforehand.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, PRNGKeyArray

from gkd_jax.errors import UserError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; the last partial batch is dropped.

    Args:
      num_examples: size of the training split.
      batch_size: examples a step, over all devices.

    Raises:
      UserError: if no full batch can be made.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if batch_size > num_examples:
        raise UserError(
            f"batch_size is {batch_size} but the training split has {num_examples} examples; "
            f"it must be at most {num_examples}"
        )
    return num_examples // batch_size


def epoch_plan(
    key: PRNGKeyArray,
    epoch: int | Int[Array, ""],
    *,
    num_examples: int,
    batch_size: int,
    num_views: int,
) -> tuple[Int32[Array, "steps b"], Int32[Array, "steps b"]]:
    """Draws one epoch's examples, without replacement, and a view of each.

    A function of its arguments alone, so that a resumed run sees what the interrupted one would have seen. With a
    threefry key (JAX's default) the plan is the same on every backend and number of devices. Under `jax.jit` all but
    `key` and `epoch` are static.

    Args:
      key: the run's key; the epoch is folded into it.
      epoch: from 0.
      num_examples: size of the training split.
      batch_size: examples a step.
      num_views: views of an image, see `gkd_jax.data.views.num_views`.

    Returns:
      `(index, view)`: places in the training split, each at most once, and view ids, uniform on [0, num_views) and
      independent of one another. The `num_examples % batch_size` examples that the epoch leaves out differ from
      epoch to epoch.

    Raises:
      UserError: if no full batch can be made.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    order_key, view_key = jax.random.split(jax.random.fold_in(key, epoch))
    order = jax.random.permutation(order_key, jnp.arange(num_examples, dtype=jnp.int32))
    index = order[: steps * batch_size].reshape(steps, batch_size)
    return index, jax.random.randint(view_key, index.shape, 0, num_views, dtype=jnp.int32)
