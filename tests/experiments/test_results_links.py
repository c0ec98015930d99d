"""Published results: what their pages link to is there for whoever clones the repository."""

import json
import pathlib
import re
import subprocess
import urllib.parse

import pytest

KEPT = ("config.json", "summary.json", "metrics.jsonl")
RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results"
PAGES = sorted(RESULTS.rglob("*.md"))
_LINK = re.compile(r"\[(?:[^\]\\]|\\.)*\]\(\s*<?([^)\s>]+)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def targets(text):
    """Returns what a page's links and images lead to in the repository, as paths; neither anchors nor other sites."""
    found = _LINK.findall(_CODE.sub("", text))
    parts = [urllib.parse.urlsplit(target) for target in found]
    return [urllib.parse.unquote(part.path) for part in parts if not (part.scheme or part.netloc) and part.path]


def ignored(paths):
    """Returns which paths git leaves out, so that no clone has them; none where there is no git."""
    asked = "\0".join(map(str, paths)).encode()
    command = ["git", "-C", str(RESULTS), "check-ignore", "-z", "--stdin"]
    try:
        found = subprocess.run(command, input=asked, capture_output=True, check=False).stdout
    except FileNotFoundError:
        return set()
    return {pathlib.Path(path) for path in found.decode().split("\0") if path}


def test_links_are_found():
    text = (
        "[a](b.md) and ![c \\] d](<e/f.png>) [g](https://h.org/i.md) [j](#k)\n[l](../m%20n.json#o) `[p](q.md)`\n"
        "```sh\n[r](s.md)\n```\n"
    )
    assert targets(text) == ["b.md", "e/f.png", "../m n.json"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(RESULTS)))
def test_links_lead_to_files(page):
    found = {target: (page.parent / target).resolve() for target in targets(page.read_text())}
    left_out = ignored(found.values())
    assert [target for target, path in found.items() if not path.exists() or path in left_out] == []


def test_there_are_pages():
    assert {"README.md", "benchmarks.md", "compile_times.md"} <= {page.name for page in PAGES}
    assert any(targets(page.read_text()) for page in PAGES)


@pytest.mark.parametrize("grid", sorted(RESULTS.rglob("grid.json")), ids=lambda file: file.parent.name)
def test_a_grid_has_the_records_of_all_its_runs(grid):
    """Also where its pages do not link to them."""
    cells = json.loads(grid.read_text())["cells"]
    files = {grid.parent / "runs" / cell["run"] / name for cell in cells for name in KEPT}
    assert cells
    assert [file for file in files if not file.exists()] == []
    assert ignored(files) == set()
