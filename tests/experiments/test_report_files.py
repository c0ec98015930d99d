"""What a report makes of folders that are damaged, half done or odd, and where it publishes to."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("statsmodels")
pytest.importorskip("jinja2")

import report_case
from report_case import change

from experiments.report import __main__ as command
from experiments.report import figures, tables, weights
from experiments.report.collect import KEPT, collect
from gkd_jax.errors import UserError


@pytest.fixture
def copy(tmp_path_factory, tmp_path):
    """A grid's folder without a report, to be damaged."""
    target = tmp_path / "grid"
    shutil.copytree(report_case.written(tmp_path_factory.getbasetemp()), target)
    return target


def test_published_holds_what_is_linked_and_no_weights(tmp_path_factory):
    folder, published = report_case.reported(tmp_path_factory.getbasetemp())
    files = {str(file.relative_to(published)) for file in published.rglob("*") if file.is_file()}
    runs = {f"runs/{run.name}/{file}" for run in collect(folder).runs for file in KEPT}
    runs |= {f"teachers/{report_case.TEACHER}/{file}" for file in KEPT}
    pictures = {f"figures/{file.name}" for file in (folder / "figures").iterdir()}
    assert files == {"report.md", "report.html", "grid.json", "failed/second-kd-adaptive.json"} | runs | pictures
    assert len(collect(published).runs) == 7  # it can be reported on again


def test_cells_that_are_one_run_have_its_folder(copy, tmp_path):
    grid = json.loads((copy / "grid.json").read_text())
    wide, dataset = report_case.PAIRS["second"]
    other = {"pair": wide, "dataset": dataset, "method": "dkd", "schedule": "constant"}
    grid["cells"].append({"name": "second-dkd", "run": "first-alone", "labels": other})
    (copy / "grid.json").write_text(json.dumps(grid))
    (run,) = [run for run in collect(copy).runs if run.name == "second-dkd"]
    (whose,) = [run for run in collect(copy).runs if run.name == "first-alone"]
    assert (run.place, run.summary, run.labels) == ("first-alone", whose.summary, other)
    assert command.main([str(copy), "--publish", str(tmp_path / "published")]) == 0
    page = (tmp_path / "published" / "report.md").read_text()
    assert "second-dkd" in page
    assert "runs/second-dkd" not in page
    assert not (tmp_path / "published" / "runs" / "second-dkd").exists()
    (copy / "runs" / "first-alone" / "summary.json").unlink()
    states = {lack.name: lack.state for lack in collect(copy).missing}
    assert states["second-dkd"] == states["first-alone"] == "unfinished"
    grid["cells"][-1]["run"] = "../first-alone"
    (copy / "grid.json").write_text(json.dumps(grid))
    with pytest.raises(UserError, match="'../first-alone' is no folder's name"):
        collect(copy)


def test_published_says_nothing_of_this_machines_folders(copy, tmp_path):
    file = copy / "runs" / "first-kd" / "config.json"
    config = json.loads(file.read_text())
    config["data"] |= {"data_dir": "/secret/data", "source": "npz:/secret/birds.npz"}
    config["teacher"] |= {"checkpoint": "/secret/grid/teachers/resnet56-cifar100-1a2b", "cache_dir": "/secret/cache"}
    config["compilation_cache"] = "/secret/compiled"
    file.write_text(json.dumps(config))
    assert command.main([str(copy), "--publish", str(tmp_path / "published")]) == 0
    published = json.loads((tmp_path / "published" / "runs" / "first-kd" / "config.json").read_text())
    assert published["data"]["data_dir"] is None
    assert published["data"]["source"] == "npz:birds.npz"
    assert published["teacher"]["checkpoint"] == "resnet56-cifar100-1a2b"
    assert published["teacher"]["cache_dir"] == published["compilation_cache"] == "auto"
    assert published["objective"] == config["objective"]
    texts = (f for f in (tmp_path / "published").rglob("*") if f.suffix in (".json", ".jsonl", ".md", ".html"))
    assert not [f for f in texts if "/secret" in f.read_text()]


def _refused(capsys, *arguments):
    assert command.main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_another_baseline(copy, capsys):
    assert command.main([str(copy), "--baseline", "method=alone"]) == 0
    assert "Baseline | method alone |" in (copy / "report.md").read_text()
    capsys.readouterr()
    for given, said in (
        ("method=dkdd", "--baseline: method is 'dkdd'; it is one of kd, alone, dkd"),
        ("way=kd", "--baseline: way is 'kd'; no cell has such a label"),
        ("kd", "--baseline is LABEL=VALUE, as in method=alone, not 'kd'"),
    ):
        assert said in _refused(capsys, copy, "--baseline", given)


def test_failures_of_cells_that_the_grid_has_no_more_are_left_out(copy):
    for name in ("gone", "teachers/resnet8-digits-12"):
        (copy / "failed" / f"{name.rpartition('/')[2]}.json").write_text(
            json.dumps({"name": name, "error": "it broke"})
        )
    assert {lack.name for lack in collect(copy).missing} == {"second-kd-adaptive", "late", "teachers/resnet8-digits-12"}


def test_publish_refuses_what_is_not_its_own(copy, tmp_path, capsys):
    target = tmp_path / "results"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert "holds something else" in _refused(capsys, copy, "--publish", target)
    grid = json.loads((copy / "grid.json").read_text())
    (target / "grid.json").write_text(json.dumps({**grid, "title": "another"}))
    assert "another grid's report (title: 'another'" in _refused(capsys, copy, "--publish", target)
    (target / "grid.json").write_text(json.dumps(grid))
    (target / "runs" / "late").mkdir(parents=True)
    assert "not finished in" in _refused(capsys, copy, "--publish", target)
    assert "own folder" in _refused(capsys, copy, "--publish", copy)
    assert "no folder" in _refused(capsys, copy, "--publish", target / "notes.txt")
    assert not (copy / "report.md").exists()
    assert sorted(file.name for file in target.iterdir()) == ["grid.json", "notes.txt", "runs"]


def test_publishing_again_removes_stale_figures(copy, tmp_path):
    target = tmp_path / "results"
    (target / "figures").mkdir(parents=True)
    (target / "figures" / "old.png").write_bytes(b"")
    (target / "failed").mkdir()
    (target / "failed" / "first-kd.json").write_text("{}")
    change(copy / "grid.json", lambda grid: grid.update(cells=grid["cells"][:1]))
    shutil.copy(copy / "grid.json", target)
    assert command.main([str(copy), "--publish", str(target)]) == 0
    assert not (target / "figures" / "old.png").exists()
    assert not (target / "failed" / "first-kd.json").exists()
    assert (target / "runs" / "first-kd" / "metrics.jsonl").exists()


def test_bad_folders(copy, tmp_path, capsys):
    assert "has no grid.json" in _refused(capsys, tmp_path)
    assert "has no grid.json" in _refused(capsys, tmp_path / "nowhere")
    summary = copy / "runs" / "first-kd" / "summary.json"
    whole = summary.read_text()
    summary.write_text(whole[:100])
    assert "summary.json: cannot be read" in _refused(capsys, copy)
    summary.write_text('{"student": {}}')
    assert "damaged: it has no student with a test_accuracy" in _refused(capsys, copy)
    summary.write_text(whole)
    metrics = copy / "runs" / "first-kd" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert "metrics.jsonl: damaged: it ends at epoch 5 of 6" in _refused(capsys, copy)
    configuration = copy / "runs" / "first-kd" / "config.json"
    change(configuration, lambda found: found.pop("objective"))
    assert "config.json: damaged: it has no objective" in _refused(capsys, copy)
    configuration.unlink()
    assert "config.json: no such file" in _refused(capsys, copy)
    shutil.rmtree(copy / "runs")
    assert "no run is finished yet, of 9 cells; 8 not started, 1 failed" in _refused(capsys, copy)
    change(copy / "grid.json", lambda grid: grid.update(cells=[{"name": "../x", "labels": {}}]))
    assert "'../x' is no folder's name" in _refused(capsys, copy)
    change(copy / "grid.json", lambda grid: grid.pop("within"))
    assert "within must be a list" in _refused(capsys, copy)


def test_a_package_that_is_not_there(copy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    assert "needs statsmodels.stats.multitest: pip install 'gkd_jax[experiments]'" in _refused(capsys, copy)


def test_an_unfinished_cell(copy):
    (copy / "runs" / "first-kd" / "summary.json").unlink()
    told = [(lack.name, lack.state, lack.error) for lack in collect(copy).missing]
    assert told[0] == ("first-kd", "unfinished", "6 of 6 epochs are done")
    (copy / "failed" / "resnet56-cifar100-1a2b3c4d.json").write_text('{"name": "teachers/x", "error": "lost"}')
    assert collect(copy).missing[-1] == ("teachers/x", "failed", "lost", "")


def test_without_a_baseline(copy):
    (copy / "failed" / "first-kd.json").write_text('{"error": "too late"}')  # beside its summary
    found = {group.title: group for group in collect(copy).groups}
    first = found["resnet56 to resnet20, cifar100"]
    assert first.baseline is None
    assert tables.notes(first)[0] == "No differences are given: the baseline, first-kd, has no result."
    assert "p (Holm)" not in tables.main_table(first).heads
    assert [run.kind for run in first.runs] == ["kd, gompertz", "kd, gompertz_adaptive", "alone, <none> & nothing"]
    change(copy / "grid.json", lambda grid: grid["baseline"].pop("schedule"))
    why = collect(copy).groups[0].why
    assert why.startswith("the baseline is method kd, which 3 cells here are (first-kd, ")
    change(copy / "grid.json", lambda grid: grid["baseline"].clear())
    assert collect(copy).groups[0].why == "the grid names no baseline"
    change(copy / "grid.json", lambda grid: grid["baseline"].update(method="dkd", schedule="x"))
    assert collect(copy).groups[0].why == "the baseline is method dkd, schedule x, which no cell here is"


def test_same_values_on_every_seed(copy):
    file = copy / "runs" / "first-kd-gompertz" / "summary.json"
    base = json.loads((copy / "runs" / "first-kd" / "summary.json").read_text())["student"]
    change(file, lambda summary: summary["student"].update(base))
    first = collect(copy).groups[0]
    row = dict(zip(tables.main_table(first).heads, tables.main_table(first).rows[1].cells, strict=True))
    assert row["difference to the baseline (points) [95 % interval]"] == "0.00 [0.00, 0.00]"
    assert row["p (Holm)"] == "1.000"
    assert "The same difference on every seed, hence an interval of no width: kd, gompertz." in tables.notes(first)


def test_bare_runs(copy, tmp_path):
    """One run without validation, of one seed, with nothing measured but its accuracy."""
    name = "first-alone"
    change(copy / "grid.json", lambda grid: grid.update(cells=[{"name": name, "labels": {}}], within=[], baseline={}))
    shutil.rmtree(copy / "failed")
    fields = ("test_top5", "test_ece", "test_nll", "val_accuracy")
    change(copy / "runs" / name / "summary.json", lambda s: [s["student"].pop(field) for field in fields])
    file = copy / "runs" / name / "metrics.jsonl"
    file.write_text(re.sub(r'"val_accuracy": [\d.]+', '"val_accuracy": null', file.read_text()))
    group = collect(copy).groups[0]
    pictures = figures.draw(group, tmp_path / "figures")
    assert [picture.file for picture in pictures] == ["01-all-wall-time.png", "01-all-weights.png"]
    assert pictures[0].title == "Training accuracy over wall time"
    assert tables.main_table(group).heads == (
        "test, last epoch (%)",
        "n",
        "published test (%)",
        "training (s)",
        "images/s",
    )
    assert tables.main_table(group).rows[0].run.kind == name
    assert command.main([str(copy)]) == 0
    assert "Without a result" not in (copy / "report.md").read_text()


def test_the_weight_of_a_balanced_term_is_times_its_ratio(copy):
    name = "first-kd-gompertz"
    before = weights.curves(next(run for run in collect(copy).runs if run.name == name))
    file = copy / "runs" / name / "metrics.jsonl"
    file.write_text(file.read_text().replace('"kd": {', '"kd": {"balance": 4.0, '))
    after = weights.curves(next(run for run in collect(copy).runs if run.name == name))
    at_its_end = {kind: curves["kd"].mean[-1] for kind, curves in (("before", before), ("after", after))}
    np.testing.assert_allclose(at_its_end["after"], 4 * at_its_end["before"], rtol=1e-3)  # a step apart; seeds differ
    assert after["ce"].mean[-1] == before["ce"].mean[-1]


def test_what_a_student_was_exported_to(copy, tmp_path):
    folder = copy / "runs" / "first-kd" / "export"
    folder.mkdir()
    rows = [
        {"kind": "teacher (resnet56)", "test_accuracy": 0.7234, "milliseconds": 3.25, "bytes": 3_400_000},
        {"kind": "onnx", "file": "model.onnx", "test_accuracy": 0.68, "difference": 2.5e-6, "milliseconds": 0.75},
    ]
    (folder / "export.json").write_text(json.dumps({"rows": rows}))
    assert command.main([str(copy), "--publish", str(tmp_path / "published")]) == 0
    for page in ("report.md", "report.html"):
        text = (tmp_path / "published" / page).read_text()
        assert "Exported files" in text
        told = [line for line in text.splitlines() if "model.onnx" in line] if page.endswith("md") else [text]
        assert len(told) == 1
        assert all(value in told[0] for value in ("68.00", "2.5e-06", "0.750"))
    assert (tmp_path / "published" / "runs" / "first-kd" / "export" / "export.json").exists()
    (folder / "export.json").write_text("{}")
    with pytest.raises(UserError, match="export.json: damaged: it has no rows"):
        collect(copy)
