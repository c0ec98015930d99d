"""What is searched: numbers of a configuration, and in which bounds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gkd_jax import curves, recipes
from gkd_jax.errors import UserError, unknown

_FACTOR = 10.0
_INFLECTION, _RATE, _TEMPERATURE = (0.05, 0.4), (4.0, 20.0), (1.0, 8.0)
_GOMPERTZ, _ADAPTIVE = "gompertz", "gompertz_adaptive"
# Of an adaptive schedule the least fitted inflection may not exceed the one that the fit is drawn to: what is searched
# of either ends here, so that every pair of draws is allowed
_LEAST, _PARTING = 0.02, 0.15


class Parameter(NamedTuple):
    """A number that is searched.

    Attributes:
      name: "weight.LABEL", "inflection", "min_inflection", "rate" or "temperature", and ".LABEL+LABEL" behind all but
        the first where the configuration has several values of them.
      low, high: its bounds.
      log: whether it is drawn uniformly by its logarithm.
      given: what the configuration has, in all the fields.
      fields: of the configuration, which it is put into.
    """

    name: str
    low: float
    high: float
    log: bool
    given: float
    fields: tuple[str, ...]


def space(config: ConfigDict, kinds: Sequence[str] | None = None) -> tuple[Parameter, ...]:
    """Returns what is searched of a configuration.

    Args:
      config: as its file and the flags have it.
      kinds: keys of `KINDS`; None for all that the configuration has.

    Raises:
      UserError: if there is no such kind, or the configuration has nothing of one or of all.
    """
    found = []
    for kind in KINDS if kinds is None else dict.fromkeys(kinds):
        if kind not in KINDS:
            raise unknown("kind of --space", kind, KINDS)
        parameters = list(KINDS[kind](config))
        if kinds is not None and not parameters:
            raise UserError(f"--space: the objective has nothing of the kind {kind!r}")
        found += parameters
    if not found:
        raise UserError(f"the objective has nothing to search: no {' and no '.join(KINDS)}")
    return tuple(found)


def _weights(config: ConfigDict) -> Iterator[Parameter]:
    for label, line in _terms(config):
        weight = float(line.weight)
        field = f"objective.terms.{label}.weight"
        yield Parameter(f"weight.{label}", weight / _FACTOR, weight * _FACTOR, True, weight, (field,))


def _inflection(config: ConfigDict) -> Iterator[Parameter]:
    bounds = {}
    for field, block in _gompertz(config).items():
        if block.name == _ADAPTIVE:
            bounds[field] = _parting(block), _INFLECTION[1]
        elif block.get("displacement") is None:  # which says the same otherwise, and both together are refused
            bounds[field] = _INFLECTION
    yield from _together("inflection", bounds, _gompertz(config))


def _min_inflection(config: ConfigDict) -> Iterator[Parameter]:
    blocks = _gompertz(config)
    bounds = {field: (_LEAST, _parting(block)) for field, block in blocks.items() if block.name == _ADAPTIVE}
    yield from _together("min_inflection", bounds, blocks)


def _rate(config: ConfigDict) -> Iterator[Parameter]:
    blocks = _gompertz(config)
    yield from _together("rate", dict.fromkeys(blocks, _RATE), blocks)


def _temperature(config: ConfigDict) -> Iterator[Parameter]:
    # CRD's 0.07 sharpens, another number of the same name; 1 is left out, and that of terms which do not use theirs
    softening = {
        f"objective.terms.{label}": line
        for label, line in _terms(config)
        if isinstance(line.get("temperature"), int | float) and line.temperature > 1
    }
    yield from _together("temperature", dict.fromkeys(softening, _TEMPERATURE), softening)


KINDS: dict[str, Callable[[ConfigDict], Iterator[Parameter]]] = {
    "weights": _weights,
    "inflection": _inflection,
    "min_inflection": _min_inflection,
    "rate": _rate,
    "temperature": _temperature,
}


def _terms(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields the lines that are no cross-entropy and not switched off."""
    for label, line in recipes.distilling(config).items():
        if line.weight > 0:
            yield label, line


def _gompertz(config: ConfigDict) -> dict[str, Any]:
    """Returns the Gompertz schedules that weigh something, adaptive ones too, by field."""
    objective = config.objective
    if objective.mode == "convex":
        blocks = {"objective.schedule": objective.schedule}
    else:
        blocks = {"objective.ce.schedule": objective.ce.schedule}
        blocks |= {f"objective.terms.{label}.schedule": line.schedule for label, line in _terms(config)}
    return {field: block for field, block in blocks.items() if block.name in (_GOMPERTZ, _ADAPTIVE)}


def _parting(block: Any) -> float:
    """Returns where an adaptive schedule's inflections end below and begin above; its own are on either side."""
    return min(max(_PARTING, _given(block, "min_inflection")), _given(block, "inflection"))


def _given(block: Any, name: str) -> float:
    """Returns a field of a schedule or of a term's line; of a schedule its default, where it is left open."""
    value = block.get(name)
    return float(curves.PARAMETERS[block.name][name] if value is None else value)


def _together(name: str, bounds: Mapping[str, tuple[float, float]], blocks: Mapping[str, Any]) -> Iterator[Parameter]:
    """Yields one parameter for each value that blocks have in their field `name`, in bounds that include it.

    Args:
      name: of the field.
      bounds: of each block that is searched, by its own field; those of equal value share what is in the bounds of all.
      blocks: by field, these among them.
    """
    alike: dict[float, list[str]] = {}
    for field in bounds:
        alike.setdefault(_given(blocks[field], name), []).append(field)
    for given, places in alike.items():
        full = name if len(alike) == 1 else f"{name}.{'+'.join(map(_label, places))}"
        low, high = max(bounds[place][0] for place in places), min(bounds[place][1] for place in places)
        low, high = min(low, given), max(high, given)
        yield Parameter(full, low, high, False, given, tuple(f"{place}.{name}" for place in places))


def _label(place: str) -> str:
    return place.removeprefix("objective.").removeprefix("terms.").removesuffix(".schedule")


def fields(parameters: Sequence[Parameter], values: dict[str, float]) -> dict[str, float]:
    """Returns the values of parameters, given by name, by field of the configuration."""
    return {field: values[parameter.name] for parameter in parameters for field in parameter.fields}
