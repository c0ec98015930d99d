"""The command line of the grid, and what it shows."""

import io
import json
import signal
import time

import helpers
import pytest
from grid_case import Fake, finish, go, planned, write

from experiments.grid import __main__ as command_line
from experiments.grid import pace, watch
from experiments.grid import run as running
from experiments.grid.run import DONE, FAILED, RUNNING, WAITING, Run
from experiments.report import collect

pytestmark = pytest.mark.usefixtures("there")


# ----------------------------------------------------------------------------------------------- what is shown


def records(task, epochs, seconds=2.0, first=None):
    task.folder.mkdir(parents=True, exist_ok=True)
    lines = [{"epoch": e + 1, "seconds": seconds, "val_accuracy": 0.1 * e} for e in range(epochs)]
    lines[0] |= first or {}
    (task.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_how_long_the_rest_takes(there):
    given = planned()
    run = Run(given)
    kd, kd2, dkd = (run.tasks[f"runs/{name}"] for name in ("kd", "kd2", "dkd"))
    (teacher,) = kd.needs
    assert pace.remaining(run) is None
    # 240 epochs of two seeds: 480 units of work at 1/4 second; the teacher's network is another
    run.status["runs/alone"] = running.Status(DONE, seconds=120.0)
    run.status[teacher] = running.Status(DONE, seconds=1000.0)
    run.status["runs/kd"] = running.Status(RUNNING, since=50.0)
    expected = {"kd": 120 - 30, "kd2": 3 * 2 / 4, "dkd": 120}
    assert pace.remaining(run, now=80.0) == pytest.approx(sum(expected.values()))
    records(kd, epochs=60, seconds=0.5)  # its own pace: 30 s for a quarter
    expected["kd"] = 90.0
    assert pace.remaining(run, now=80.0) == pytest.approx(sum(expected.values()))
    run.status["runs/kd2"] = running.Status(RUNNING, since=80.0)
    assert pace.remaining(run, now=80.0) == pytest.approx(sum(expected.values()) / 2)
    run.status["runs/dkd"] = running.Status(FAILED)
    assert pace.remaining(run, now=80.0) == pytest.approx((expected["kd"] + expected["kd2"]) / 2)
    assert pace.read(kd) == pace.Reading(60, 240, pytest.approx(5.9), 30.0)
    assert pace.read(kd2) == pace.Reading(0, 3, None, 0.0)


def test_what_the_first_cell_spends_on_the_cache_is_no_others(there):
    run = Run(planned(only="kd|kd2|dkd"))
    (teacher,) = run.tasks["runs/kd"].needs
    run.status[teacher] = running.Status(DONE, seconds=1000.0)
    run.status["runs/kd"] = running.Status(RUNNING)
    first = {"seconds": 80.5, "seconds_cache": 70.0, "seconds_compile": 10.0}
    records(run.tasks["runs/kd"], epochs=60, seconds=0.5, first=first)
    # 240 epochs of half a second, of which 180 are left; another cell compiles too; 3 of 240 epochs are kd2's
    waiting = (240 * 0.5 + 10) * (1 + 3 / 240)
    assert pace.remaining(run, now=0.0) == pytest.approx(180 * 0.5 + waiting)
    run.status["runs/kd"] = running.Status(DONE, seconds=70 + 240 * 0.5 + 10)
    assert pace.remaining(run, now=0.0) == pytest.approx(waiting)


def test_how_long_the_rest_takes_after_a_run_that_was_gone_on_with_and_in_a_queue(there):
    run = Run(planned(only="alone|kd2"))
    (alone, teacher, kd2) = run.tasks.values()
    for task in (alone, teacher):
        task.folder.mkdir(parents=True)
        finish(task, seconds=480.0)  # all of it: a second for each unit of work
        run.status[task.name] = running.Status(DONE, seconds=12.0)  # here
    assert pace.remaining(run) == pytest.approx(3 * 2)
    run = Run(planned())
    run.status["runs/alone"] = running.Status(DONE, seconds=120.0)
    run.status[next(name for name in run.tasks if "teachers/" in name)] = running.Status(DONE)
    for name in ("kd", "kd2", "dkd"):
        run.status[f"runs/{name}"] = running.Status(RUNNING)
    left = [pace.remaining(run, now=0.0)]
    run.slots = 1
    left.append(pace.remaining(run, now=0.0))
    assert left[1] == pytest.approx(3 * left[0])


def test_a_line_for_each_end_where_there_is_no_terminal(there):
    go(Run(planned(only="alone")), Fake())
    stream = io.StringIO()
    with watch.watching(stream) as look:
        Run(planned()).go(Fake({"runs/kd2": "the loss\nbecame NaN"}), lambda: False, look)
    first, _, kd, kd2, dkd = stream.getvalue().splitlines()
    assert first == "4 cells, 1 of them done already"
    assert kd.startswith("kd: done in 0:00:01, test 50.00 %  (2 done, ")
    assert kd2.startswith("kd2: failed: the loss became NaN  (2 done, ")
    assert dkd == "dkd: done in 0:00:01, test 50.00 %  (3 done, 1 failed of 4 cells)"


def test_a_table_on_a_terminal(there):
    rich_console = pytest.importorskip("rich.console")
    run = Run(planned())
    run.status["runs/kd"] = running.Status(RUNNING, since=time.monotonic() - 61)
    run.status["runs/dkd"] = running.Status(WAITING, elsewhere=True)
    records(run.tasks["runs/kd"], 3)
    console = rich_console.Console(file=io.StringIO(), width=100)
    console.print(watch.table(run))
    shown = console.file.getvalue()
    assert "0 done, 1 running, 3 waiting of 4 cells, ETA " in shown
    (row,) = [line for line in shown.splitlines() if " kd " in line]
    assert [part for part in row.split() if part[0].isalnum()] == ["kd", "3/240", "20.00", "0:01:01"]
    assert "dkd (another process)" in shown

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with watch.watching(stream) as look:
        Run(planned()).go(Fake(), lambda: False, look)
    assert "dkd: done in 0:00:01, test 50.00 %" in stream.getvalue()


# ------------------------------------------------------------------------------------------- the command line


def command(*arguments, engine=None, monkeypatch=None, capsys=None):
    status = command_line.main([str(argument) for argument in arguments])
    return (status, *capsys.readouterr())


@pytest.fixture
def ask(monkeypatch, capsys, there):
    """Runs the command line with an engine that runs nothing."""

    def run(*arguments, engine=None):
        engine = engine or Fake()
        monkeypatch.setattr(command_line, "LocalEngine", lambda workers: engine)
        status = command_line.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def test_a_whole_grid(ask, there):
    status, out, err = ask("--grid", "small.py", "--out", there / "out", "--only", "kd")
    assert (status, out) == (0, "3 of 3 cells are finished; everything is in out\n"), err
    written = json.loads((there / "out" / "grid.json").read_text())
    names = ["alone", "kd", "kd2", "dkd"]
    assert [each["name"] for each in written["cells"]] == names  # all of them, for the report
    assert written["cells"][1]["labels"] == {"method": "kd"}
    assert (written["title"], written["grid"], written["baseline"]) == ("A test", "small.py", {"method": "kd"})
    (first,) = written["commands"]
    assert first.startswith("python -m experiments.grid --grid small.py --out ")
    assert first.endswith(" --only kd")
    engine = Fake({"runs/alone": "no"})
    status, out, err = ask("--grid", "small.py", "--out", "out", "--workers=2", engine=engine)
    assert (status, engine.started, engine.closed) == (1, ["runs/alone"], True)
    assert "runs/alone: no\n3 of 4 cells are finished" in out
    assert "what failed is in out/failed" in out
    ask("--grid", "small.py", "--out", "out", "--workers=2", engine=Fake())
    # A grid that was run in parts names every command, and each once
    second = "python -m experiments.grid --grid small.py --out out --workers=2"
    assert json.loads((there / "out" / "grid.json").read_text())["commands"] == [first, second]


def test_a_grid_that_was_moved_has_nothing_to_do_and_its_report_finds_all(ask, there):
    assert ask(*GIVEN)[0] == 0
    (there / "out").rename("moved")
    engine = Fake()
    status, out, err = ask("--grid", "small.py", "--out", "moved", engine=engine)
    assert (status, out, engine.started) == (0, "4 of 4 cells are finished; everything is in moved\n", []), err
    names = [cell["name"] for cell in collect.read_grid(there / "moved")["cells"]]
    assert {collect._missing(there / "moved", name) for name in names} == {None}


def test_a_dry_run_writes_nothing(ask, there):
    before = helpers.contents(there)
    status, out, err = ask("--grid", "small.py", "--out", "out", "--shard=1/2", "--dry")
    assert (status, err) == (0, "")
    alone, teacher, kd2 = out.splitlines()
    assert alone == "runs/alone  [not done]"
    assert teacher.startswith("teachers/resnet20-digits-")
    assert kd2 == f"runs/kd2  [not done]  needs {teacher.partition(' ')[0]}"
    assert helpers.contents(there) == before


def test_a_signal_stops_what_runs_and_says_how_to_go_on(ask):
    class Hanging(Fake):
        def start(self, task):
            if self.started:
                signal.raise_signal(signal.SIGTERM)
            super().start(task)

    engine = Hanging()
    status, out, err = ask("--grid", "small.py", "--out", "out", engine=engine)
    assert (status, engine.closed, len(engine.started)) == (128 + signal.SIGTERM, True, 2)
    assert "stopped by SIGTERM; 1 of 4 cells are finished; to go on:\n  python -m experiments.grid --grid" in err


GIVEN = ("--grid", "small.py", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "x"), "--grid"),
        (("--grid", "small.py"), "--out"),
        (("--grid", "none.py", "--out", "x"), "--grid: no such file: none.py"),
        (("--grid", "small.py:x", "--out", "x"), "takes no argument, but 'x'"),
        ((*GIVEN, "--worker=2"), "--worker=2"),
        ((*GIVEN, "--workers=0"), "--workers must be 1 or above, not 0"),
        ((*GIVEN, "--workers=two"), "--workers: invalid int value: 'two'"),
        ((*GIVEN, "--workers=2", "--engine=ray"), "--workers stands with --engine local"),
        ((*GIVEN, "--engine=slurm"), "'slurm'"),
        ((*GIVEN, "--shard=0/2"), "--shard must be i/n with i from 1 to n, such as 1/3, not '0/2'"),
        ((*GIVEN, "--shard=3/2"), "not '3/2'"),
        ((*GIVEN, "--shard=2"), "not '2'"),
        ((*GIVEN, "--only=("), "--only: '(' is no regular expression"),
        ((*GIVEN, "--only=nothing"), "--only: 'nothing' is found in no cell; the cells are alone, kd, kd2, dkd"),
        ((*GIVEN, "--resources=num_cpus=2"), "--resources stands with --engine ray"),
        ((*GIVEN, "--engine=ray", "--resources=num_cpus"), "--resources must be NAME=NUMBER,"),
        ((*GIVEN, "--engine=ray", "--resources=num_cpus=many"), "--resources must be NAME=NUMBER,"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_sentence(ask, there, arguments, said):
    before = helpers.contents(there)
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("experiments.grid: ")
    assert err.count("\n") == 1
    assert helpers.contents(there) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("return Grid('t', ())", "the grid has no cells"),
        ("return 3", "get_grid() returned int; it must return an experiments.grid.cells.Grid"),
        ("cells[0] = 3", "must be an experiments.grid.cells.Cell with a ConfigDict, not 3"),
        ("cells[0] = cells[0]._replace(name='../x')", "a cell is called '../x'"),
        ("cells[0] = cells[0]._replace(name='KD')", "two cells are called 'kd'"),
        ("cells[0] = cells[0]._replace(labels={'seeds': 3})", "the cell alone: labels are text, not 3"),
        ("cells[2].config.student.model = 'resnet9'", "the cell kd2: student.model: unknown model 'resnet9'"),
        ("cells[2].config.epochs = 0", "the cell kd2: epochs must be between 1 and 1000000, not 0"),
        ("1 / 0", "small.py fails in line"),
    ],
)  # fmt: skip
def test_a_grid_that_does_not_work_gets_one_sentence(ask, there, more, said):
    write(more)
    before = helpers.contents(there)
    status, out, err = ask(*GIVEN)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert helpers.contents(there) == before


def test_the_folder_of_another_grid(ask, there):
    assert ask(*GIVEN)[0] == 0
    write(file="other.py")
    before = helpers.contents(there)
    status, _, err = ask("--grid", "other.py", "--out", "out")
    assert (status, err) == (
        2, "experiments.grid: --out: out holds the grid small.py, not other.py; choose another folder\n"
    )  # fmt: skip
    assert helpers.contents(there) == before
    assert ask("--grid", there / "small.py", "--out", "out")[0] == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--help"])
    assert ended.value.code == 0
    assert "--shard      the i-th of n equal parts" in capsys.readouterr().out
