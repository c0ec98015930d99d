"""The type of a distillation term, and the register of them by name."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, PRNGKeyArray, ScalarLike

from gkd_jax import registry
from gkd_jax.errors import UserError, nearest, unknown
from gkd_jax.outputs import Batch, Gradient, Outputs, Setup

Need = str | Gradient
Scheduled = float | int | Callable[[Array], ScalarLike]
"""An option of a term: a number, or a schedule `step -> number`."""
Heads = Any  # trained with the student; {} for most terms
State = Any  # carried from step to step and checkpointed; () for most terms


def _no_heads(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
    return {}, ()


def _no_constants(setup: Setup) -> Any:
    return ()


def _no_readings(state: State) -> Mapping[str, Array]:
    return {}


class Term(NamedTuple):
    """One kind of loss: what it needs, what it trains, and its value for a batch.

    Attributes:
      name: of the kind, as registered.
      loss: `(heads, state, student, teacher, batch, key) -> (values, state)`; values are one an example, [b], or a
        scalar where the term compares whole batches. In float32, unreduced: the objective takes the mean.
      needs: `"teacher.FIELD"` for each field of the teacher's `Outputs` that is read, and each `Gradient`, which is
        then computed for student and teacher alike.
      init: `(key, student, teacher, setup) -> (heads, state)`; the outputs are shapes only
        (`jax.ShapeDtypeStruct`), with every `Gradient` of `needs` among `grads`.
      constants: `(setup) -> tree`, computed once before the first step and found in `Batch.constants`: what neither
        training nor any step changes, such as a cost matrix from the teacher's classifier.
      readings: `(state) -> {name: scalar}`, what to log of the state beside the value.
    """

    name: str
    loss: Callable[[Heads, State, Outputs, Outputs | None, Batch, PRNGKeyArray], tuple[Array, State]]
    needs: frozenset[Need] = frozenset()
    init: Callable[[PRNGKeyArray, Outputs, Outputs | None, Setup], tuple[Heads, State]] = _no_heads
    constants: Callable[[Setup], Any] = _no_constants
    readings: Callable[[State], Mapping[str, Array]] = _no_readings


_FACTORIES: dict[str, Callable[..., Term]] = {}


def register(name: str, needs: Iterable[Need] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a term under `name`; its keyword-only arguments become its fields in a configuration.

    With `needs`, the decorated function is the whole term: `loss(student, teacher, *, option=default) -> values`.
    Without, it is a factory: `factory(*, option=default) -> Term`. The function itself is returned unchanged.

    Raises:
      ValueError: if another function has the name.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        registry.add(
            _FACTORIES, "term", name, function if needs is None else _of_plain(name, function, frozenset(needs))
        )
        return function

    return decorate


def _of_plain(name: str, function: Callable[..., Array], needs: frozenset[Need]) -> Callable[..., Term]:
    @functools.wraps(function)  # keeps the signature, which `options` reads
    def factory(**given: Any) -> Term:
        def loss(
            heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
        ) -> tuple[Array, State]:
            return function(student, teacher, **given), state

        return Term(name, loss, needs)

    return factory


def names() -> list[str]:
    """Returns the names of the registered terms, sorted."""
    return sorted(_FACTORIES)


def options(name: str) -> dict[str, Any]:
    """Returns the options of the term `name` with their defaults.

    Raises:
      UserError: if no term has that name.
    """
    return {option.name: option.default for option in _arguments(name)}


def schedulable(name: str) -> list[str]:
    """Returns those options of the term `name` that may be schedules: they are annotated as `Scheduled`.

    Raises:
      UserError: if no term has that name.
    """
    return [option.name for option in _arguments(name) if option.annotation == Scheduled]


def _arguments(name: str) -> list[inspect.Parameter]:
    if name not in _FACTORIES:
        raise unknown("term", name, _FACTORIES)
    arguments = inspect.signature(_FACTORIES[name]).parameters.values()
    return [argument for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]


def create(name: str, **given: Any) -> Term:
    """Returns the term `name` with the options `given`.

    Raises:
      UserError: if no term has that name, or it has no such option, or refuses its value.
    """
    known = options(name)
    for option in given:
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise UserError(f"term {name!r} has no option {option!r}{nearest(option, known)}; its options: {allowed}")
    try:
        return _FACTORIES[name](**given)
    except ValueError as error:
        raise UserError(f"term {name!r}: {error}") from error
