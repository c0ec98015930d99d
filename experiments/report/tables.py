"""The numbers of a group as text: one table of means and differences, one of single seeds, and what is to be said."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.report.collect import Group, Run
from experiments.report.statistics import Comparison, Spread, holm, paired, spread
from gkd_jax.export import table as export_table
from gkd_jax.recipes import bare, changes, published
from gkd_jax.recipes.published import Published

NONE = "–"
TEST = "test_accuracy"
_CHANGES = 8
_EPOCH = {"best": "best test epoch of {}", "last": "last of {}", "unknown": "epoch not said, of {}"}


class Measure(NamedTuple):
    """A number of the summary beside the accuracy.

    Attributes:
      head: of its column.
      factor: 100 for a fraction, which is shown in %.
      digits: behind the point.
      better: "higher is better", or lower, or nothing of the kind.
    """

    head: str
    factor: float
    digits: int
    better: str


MEASURES = {
    "test_top5": Measure("top-5 (%)", 100, 2, "higher is better"),
    "test_ece": Measure("ECE (%)", 100, 2, "lower is better"),
    "test_nll": Measure("NLL (nats)", 1, 3, "lower is better"),
    "teacher_agreement": Measure("agreement with the teacher (%)", 100, 2, ""),
}


class Row(NamedTuple):
    """One run.

    Attributes:
      run: whose numbers they are.
      is_baseline: whether others are compared with it.
      cells: texts, one for each head.
    """

    run: Run
    is_baseline: bool
    cells: tuple[str, ...]


class Table(NamedTuple):
    """A table as text.

    Attributes:
      heads: of the columns behind the first, which is the kind of run.
      rows: one for each run, or one for each run and seed.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]


class Compared(NamedTuple):
    """A run beside the baseline.

    Attributes:
      run: the run.
      comparison: in percentage points; None without two common seeds.
      p: corrected for all comparisons of the group; None where the comparison has none.
    """

    run: Run
    comparison: Comparison | None
    p: float | None


def compared(group: Group) -> list[Compared]:
    """Returns every run of a group but the baseline beside it; nothing without a baseline."""
    if group.baseline is None:
        return []
    base = percents(group.baseline, TEST)
    others = [run for run in group.runs if run is not group.baseline]
    found = [paired(percents(run, TEST), base) for run in others]
    family = [comparison for comparison in found if comparison is not None]
    corrected = iter(holm([comparison.p for comparison in family]))
    return [Compared(r, c, None if c is None else next(corrected)) for r, c in zip(others, found, strict=True)]


def percents(run: Run, field: str) -> dict[str, float]:
    """Returns a fraction of the summary by seed, in %."""
    return {seed: 100 * value for seed, value in run.values(field).items()}


def exports_table(group: Group) -> Table | None:
    """Returns the table of the files that students were exported to, None if none was; a teacher's row comes first."""
    runs = [run for run in group.runs if run.exported]
    if not runs:
        return None
    told = [(run, export_table.cells(run.exported)) for run in runs if run.exported]
    heads = ("network or format", *told[0][1][0][1:])
    return Table(heads, tuple(Row(run, run is group.baseline, row) for run, rows in told for row in rows[1:]))


def main_table(group: Group) -> Table:
    """Returns the table of means: one row for each run, columns that no run has anything for left out."""
    beside = {item.run.name: item for item in compared(group)}

    def difference(run: Run) -> str:
        return "baseline" if run is group.baseline else told_difference(beside[run.name].comparison)

    def corrected(run: Run) -> str:
        return NONE if run is group.baseline else told_p(beside[run.name].p)

    columns: dict[str, Callable[[Run], str]] = {
        "test, last epoch (%)": lambda run: told(spread(percents(run, TEST).values())),
        "n": lambda run: str(len(run.values(TEST))),
    }
    if group.baseline is not None:
        columns["difference to the baseline (points) [95 % interval]"] = difference
        columns["p (Holm)"] = corrected
    columns["validation, last epoch (%)"] = lambda run: told(_validation(run, 0))
    columns["validation, best epoch (%)"] = _best
    columns["published test (%)"] = lambda run: _published(find_published(run))
    for field, measure in MEASURES.items():
        columns[measure.head] = lambda run, field=field, measure=measure: told(  # type: ignore[misc]
            spread([measure.factor * v for v in run.values(field).values()]), measure.digits
        )
    columns["training (s)"] = _training
    columns["teacher's cache (s)"] = lambda run: _number(run.filling or None, "{:,.0f}")
    columns["images/s"] = lambda run: _number(run.summary.get("images_per_second"), "{:,.0f}")
    return _table(group, columns, lambda run: [run])


def seeds_table(group: Group) -> Table:
    """Returns the table of single values: one row for each run and seed."""
    columns: dict[str, Callable[[tuple[Run, str]], str]] = {
        "seed": lambda one: one[1],
        "test, last epoch (%)": lambda one: _single(one, TEST, 100, 2),
        "validation, last epoch (%)": lambda one: _single_validation(one, 0),
        "validation, best epoch (%)": lambda one: _single_validation(one, 1),
        "best epoch": lambda one: _single_validation(one, 2),
    }
    for field, measure in MEASURES.items():
        columns[measure.head] = lambda one, field=field, measure=measure: _single(  # type: ignore[misc]
            one, field, measure.factor, measure.digits
        )
    return _table(group, columns, lambda run: [(run, seed) for seed in run.seeds])


def _table(group: Group, columns: dict[str, Callable[[Any], str]], of_run: Callable[[Run], Sequence[Any]]) -> Table:
    filled = [(run, [write(one) for write in columns.values()]) for run in group.runs for one in of_run(run)]
    kept = [place for place in range(len(columns)) if any(cells[place] != NONE for _, cells in filled)]
    heads = tuple(columns)
    return Table(
        tuple(heads[place] for place in kept),
        tuple(Row(run, run is group.baseline, tuple(cells[place] for place in kept)) for run, cells in filled),
    )


def told(found: Spread | None, digits: int = 2) -> str:
    """Returns "72.34 ± 0.21", without ± for one seed."""
    if found is None:
        return NONE
    return f"{found.mean:.{digits}f}" + ("" if found.std is None else f" ± {found.std:.{digits}f}")


def told_difference(found: Comparison | None) -> str:
    """Returns "+0.45 [−0.12, +1.02]"."""
    if found is None:
        return NONE
    return f"{signed(found.difference)} [{signed(found.low)}, {signed(found.high)}]"


def signed(value: float) -> str:
    """Returns a number with its sign and two digits; what rounds to 0 has no sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return text[1:] if text[1:] == "0.00" else text


def told_p(p: float | None) -> str:
    """Returns a p-value with three digits."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def find_published(run: Run, method: str | None = None) -> Published | None:
    """Returns what was published of a run's method, or of another, on its pair, if it is a standard pair of CIFAR-100.

    Args:
      run: the run.
      method: such as "teacher"; by default the run's own.
    """
    recipe = run.config.get("recipe")
    if run.config["data"]["source"] != published.DATASET or not recipe:
        return None
    return published.find(method or bare(recipe), *published.pair(run.config))


def _published(found: Published | None) -> str:
    return NONE if found is None else f"{found.accuracy:.2f} ({_EPOCH[found.epoch].format(found.epochs)})"


def notes(group: Group) -> list[str]:
    """Returns what must be said under a group's table."""
    said = [f"No differences are given: {group.why}."] if group.baseline is None else []
    beside = compared(group)
    alone = [item.run.kind for item in beside if item.comparison is None]
    if alone:
        said.append(f"Not compared, since fewer than two seeds are the baseline's too: {'; '.join(alone)}.")
    flat = [i for i in beside if i.comparison and i.comparison.low == i.comparison.high]
    if flat:
        said.append(f"The same difference on every seed, hence an interval of no width: {_kinds(flat)}.")
    return said


def beside_published(group: Group) -> list[str]:
    """Returns a sentence for each run with a published number: who published it, and what the run does otherwise."""
    said = []
    for run in group.runs:
        theirs = find_published(run)
        if theirs is None:
            continue
        schedule = ", under its authors' schedule" if "+" in run.config["recipe"] else ""
        changed = changes(run.config)
        more = f"; and {len(changed) - _CHANGES} fields more" if len(changed) > _CHANGES else ""
        told = f"; this run changes the recipe: {'; '.join(changed[:_CHANGES])}{more}" if changed else ""
        said.append(f"{run.kind}: published by {theirs.source}{schedule}{told}.")
    return said


def teachers(group: Group) -> list[str]:
    """Returns a sentence for each teacher of a group: how good it is."""
    found: dict[tuple[str, float, str], list[str]] = {}
    for run in group.runs:
        part = run.summary.get("teacher")
        if part and isinstance(part.get(TEST), float):
            theirs = find_published(run, "teacher")
            beside = "" if theirs is None else f"; published {_published(theirs)}"
            found.setdefault((part["model"], part[TEST], beside), []).append(run.kind)
    said = []
    for (model, accuracy, beside), kinds in found.items():
        whose = "" if len(found) == 1 else f" (of {'; '.join(kinds)})"
        said.append(f"Teacher {model}{whose}: {100 * accuracy:.2f} % of the test images{beside}.")
    return said


def _kinds(items: Sequence[Compared]) -> str:
    return "; ".join(item.run.kind for item in items)


def _validation(run: Run, place: int) -> Spread | None:
    return spread([100 * found[place] for found in run.validation().values()])


def _best(run: Run) -> str:
    epochs = [found[2] for found in run.validation().values()]
    if not epochs:
        return NONE
    where = f"epoch {epochs[0]}" if len(set(epochs)) == 1 else f"epochs {min(epochs)}–{max(epochs)}"
    return f"{told(_validation(run, 1))} ({where})"


def _single(one: tuple[Run, str], field: str, factor: float, digits: int) -> str:
    value = one[0].values(field).get(one[1])
    return NONE if value is None else f"{factor * value:.{digits}f}"


def _single_validation(one: tuple[Run, str], place: int) -> str:
    found = one[0].validation().get(one[1])
    if found is None:
        return NONE
    return str(found[2]) if place == 2 else f"{100 * found[place]:.2f}"


def _training(run: Run) -> str:
    seconds = run.student.get("seconds")
    return NONE if seconds is None else _number(seconds - run.overhead.sum(), "{:,.0f}")


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else NONE
