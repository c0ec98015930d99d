r"""The objective: lines of (term, weight), added up to one scalar.

.. math::

  L = w_{ce}(t)\, CE(y, z_S) + \sum_k \lambda_k\, s_k(t)\, L_k

in the mode "sum", where each line has its own schedule :math:`s_k`; in the mode "convex"

.. math::

  L = (1 - G(t))\, CE(y, z_S) + G(t) \sum_k \lambda_k\, L_k

with one schedule G for all.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from gkd_jax.errors import UserError
from gkd_jax.losses.term import Term
from gkd_jax.outputs import Batch, Gradient, Outputs, Setup
from gkd_jax.schedules import Weight

Tree = Any


class Line(NamedTuple):
    """One line of the objective; cross-entropy is one too.

    Attributes:
      term: what is computed.
      weight: what it is multiplied by, step by step.
      every: compute it at every so many steps only, with `every` times the weight.
      view: the view of the images that it sees.
    """

    term: Term
    weight: Weight
    every: int = 1
    view: str = "weak"


Lines = Mapping[str, Line]


def gradients(lines: Lines) -> tuple[Gradient, ...]:
    """Returns the gradients that the lines need, each name once."""
    needs = (need for line in lines.values() for need in line.term.needs if isinstance(need, Gradient))
    return tuple({gradient.name: gradient for gradient in needs}.values())


def needs_teacher(line: Line) -> bool:
    """Returns whether a line compares the student with anything at all."""
    return bool(line.term.needs)


def active(lines: Lines, step: int) -> dict[str, Line]:
    """Returns the lines that are computed at `step`."""
    return {name: line for name, line in lines.items() if step % line.every == 0}


def stream(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """Returns the key of what is called `name`: the same, whatever else there is, so that ablations stay paired."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def init(key: PRNGKeyArray, lines: Lines, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Tree, Tree]:
    """Returns the heads and the states of all the lines by name, given the shapes of both networks' outputs.

    Raises:
      UserError: names the line that these networks do not suit.
    """
    both = {}
    for name, line in lines.items():
        try:
            both[name] = line.term.init(stream(key, name), student, teacher, setup)
        except UserError as error:
            raise UserError(f"objective.terms.{name}: {error}") from error
    return {name: heads for name, (heads, _) in both.items()}, {name: state for name, (_, state) in both.items()}


def constants(lines: Lines, setup: Setup) -> Tree:
    """Returns the constants of all the lines by name.

    Raises:
      UserError: names the line that these networks do not suit.
    """
    found = {}
    for name, line in lines.items():
        try:
            found[name] = line.term.constants(setup)
        except UserError as error:
            raise UserError(f"objective.terms.{name}: {error}") from error
    return found


class Reading(NamedTuple):
    """What one line says at one step: its raw value and its weight, both scalars."""

    value: Array
    weight: Array


def total(
    lines: Lines,
    heads: Tree,
    states: Tree,
    weights: Tree,
    constants: Tree,
    student: Mapping[str, Outputs],
    teacher: Mapping[str, Outputs],
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[Array, tuple[dict[str, Reading], Tree]]:
    """Adds up the lines.

    Args:
      lines: those active at this step.
      heads: trained parameters of the terms, by line.
      states: of the terms, by line; those of inactive lines are handed through.
      weights: parameters of the weights, by line.
      constants: of the terms, by line.
      student: the student's outputs by view.
      teacher: the teacher's outputs by view; empty without a teacher.
      batch: the examples.
      key: of this step.

    Returns:
      The loss, a float32 scalar; for each line its `Reading`; the new states.
    """
    loss, readings, states = jnp.float32(0.0), {}, dict(states)
    for name, line in lines.items():
        values, states[name] = line.term.loss(
            heads[name],
            states[name],
            student[line.view],
            teacher.get(line.view),
            batch._replace(constants=constants[name]),
            stream(key, name),
        )
        value = jnp.mean(values.astype(jnp.float32))
        weight = jnp.asarray(line.weight.at(weights[name], batch.step), jnp.float32)
        loss += line.every * weight * value
        readings[name] = Reading(value, weight)
    return loss, (readings, states)


def weights_along(lines: Lines, fractions: Iterator[float] | list[float], total_steps: int) -> dict[str, list[float]]:
    """Returns the weight of each line at each of the `fractions` of the run."""
    counts = [round(fraction * total_steps) for fraction in fractions]
    return {name: [float(line.weight.at(line.weight.init, count)) for count in counts] for name, line in lines.items()}
