"""The report as Markdown, as code hosts show it."""

import re
from collections.abc import Iterable, Iterator

from experiments.report.collect import KEPT, Run
from experiments.report.figures import FIGURES, Picture
from experiments.report.report import EXPORTS, PUBLISHED, Report, Section, link
from experiments.report.tables import Table


def render(report: Report) -> str:
    """Returns the whole text."""
    return "\n".join(_lines(report)) + "\n"


def escape(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def _lines(report: Report) -> Iterator[str]:
    yield f"# {escape(report.title)} ({escape(report.machine)})"
    if report.missing:
        yield from ("", f"**{escape(report.lack)}** See [below](#without-a-result).")
    yield from ("", escape(report.reading[0]))
    yield from ("", *_details("How to read the tables", _list(report.reading[1:])))
    for section in report.sections:
        yield from _section(section, report.kind)
    if report.missing:
        yield from ("", "## Without a result", "")
        for lack in report.missing:
            yield f"- {_code(lack.name)}, {lack.state}: {escape(lack.error)}"
            if lack.log:
                yield from (
                    "",
                    *_details("Last lines of its log", ["```text", lack.log.replace("```", "'''"), "```"]),
                    "",
                )
    yield from ("", "## Where this comes from", "", "| | |", "|---|---|")
    yield from (f"| {escape(name)} | {escape(value)} |" for name, value in report.origin)
    yield from (f"| Teacher | {escape(name)}: {_files(name)} |" for name in report.teachers)
    hashes = ["| cell | hash | run |", "|---|---|---|"]
    hashes += [f"| {escape(r.name)} | {_code(str(r.summary['config_hash']))} | {_files(r)} |" for r in report.runs]
    yield from ("", *_details("Hashes of the configurations", hashes))


def _section(section: Section, kind: str) -> Iterator[str]:
    yield from ("", f"## {escape(section.title)}")
    for sentence in section.teachers:
        yield from ("", escape(sentence))
    yield from ("", *_table(section.table, kind))
    if section.notes:
        yield from ("", *_list(section.notes))
    if section.published:
        yield from ("", *_details(PUBLISHED, _list(section.published)))
    yield from ("", *_details("Every seed", list(_table(section.seeds, kind))))
    if section.exports is not None:
        yield from ("", *_details(EXPORTS, list(_table(section.exports, kind))))
    for picture in section.pictures:
        yield from _picture(picture)


def _picture(picture: Picture) -> Iterator[str]:
    yield from ("", f"### {escape(picture.title)}", "", f"![{escape(picture.alt)}]({FIGURES}/{picture.file})")
    yield from ("", escape(picture.caption), "")
    yield from _details(f"Runs shown: {len(picture.runs)}", [f"- {escape(r.kind)}: {_files(r)}" for r in picture.runs])


def _table(table: Table, kind: str) -> Iterator[str]:
    heads = [kind, *table.heads, "run"]
    yield _row(map(escape, heads))
    yield "|---|" + "---:|" * (len(heads) - 1)
    for row in table.rows:
        yield _row([escape(row.run.kind), *map(escape, row.cells), _files(row.run)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _files(run: Run | str) -> str:
    return " ".join(f"[{file.partition('.')[0]}]({link(run, file)})" for file in KEPT)


def _list(sentences: Iterable[str]) -> list[str]:
    return [f"- {escape(sentence)}" for sentence in sentences]


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _details(summary: str, lines: Iterable[str]) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]
