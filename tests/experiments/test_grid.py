"""What a grid starts, what it leaves alone, and what it writes down of failures."""

import fcntl
import json
import os
import pathlib
import signal
import sys
import threading
import time

import helpers
import pytest
from grid_case import AT_WORK, Fake, failure, finish, go, planned, write

from experiments.grid import plan, process, tasks, worker
from experiments.grid.local import LocalEngine
from experiments.grid.run import DONE, FAILED, RUNNING, Run
from gkd_jax.training.workdir import AtWork, alone_in, same_run

pytestmark = pytest.mark.usefixtures("there")


# --------------------------------------------------------------------------------------------- what is started


def test_every_task_once_teachers_first_and_none_again(there):
    run, engine = Run(planned()), Fake()
    assert set(go(run, engine).values()) == {DONE}
    assert engine.started == [task.name for task in planned()]
    assert engine.started[1].startswith("teachers/resnet20-digits-")
    again = Fake()
    assert set(go(Run(planned()), again).values()) == {DONE}
    assert again.started == []


def test_a_teacher_that_no_unfinished_cell_needs_is_not_trained(there):
    given = planned()
    for task in given:
        if task.needs:
            tasks.write(task)
            finish(task)
    run, engine = Run(given), Fake()
    go(run, engine)
    assert engine.started == ["runs/alone"]


def test_what_changes_nothing_about_a_run_does_not_make_it_another(there):
    go(Run(planned()), Fake())
    write("cells = [Cell(c.name, c.config.copy_and_resolve_references(), c.labels) for c in cells]\n"
          "    for c in cells: c.config.plots = False")  # fmt: skip
    engine = Fake()
    assert set(go(Run(planned()), engine).values()) == {DONE}
    assert engine.started == []


@pytest.mark.parametrize("how", ["renamed", "from_elsewhere"])
def test_a_grid_that_was_moved_is_still_finished(there, monkeypatch, how):
    go(Run(planned()), Fake())
    before = helpers.contents(there / "out" / "runs")
    if how == "renamed":
        (there / "out").rename(out := there / "renamed")
    else:
        (there / "other").mkdir()
        monkeypatch.chdir(there / "other")
        write()
        out = there / "out"
    engine = Fake()
    assert set(go(Run(planned(out=out)), engine).values()) == {DONE}
    assert engine.started == []
    assert helpers.contents(out / "runs") == before
    assert not (out / "failed").exists()


def test_another_teacher_makes_another_run_in_a_moved_folder_too(there):
    go(Run(planned()), Fake())
    (there / "out").rename("moved")
    write("cells[1].config.teacher.epochs = 7")
    assert go(Run(planned(out="moved")), Fake())["kd"] == FAILED
    written = json.loads(pathlib.Path("moved/failed/kd.json").read_text())
    assert "(teacher.checkpoint: 'teachers/resnet20" in written["error"]


def begun(task):
    """Leaves a task's folder as a run that was stopped does."""
    tasks.write(task)
    config = plan._resolve(task.config)
    (task.folder / "config.json").write_text(json.dumps(config))
    return config


def test_an_unfinished_run_of_a_moved_grid_goes_on_with_the_teacher_there(there):
    *_, task = planned(only="^kd$")
    config = begun(task)
    # The same folder by another name: the run keeps its own
    (there / "link").symlink_to(there / "out")
    (there / "out" / task.needs[0]).mkdir(parents=True)
    *_, linked = planned(only="^kd$", out="link")
    assert plan.continued(linked).config["teacher"]["checkpoint"] == task.config["teacher"]["checkpoint"]
    assert json.loads((task.folder / "config.json").read_text()) == config
    # Another folder: the run is given the new one, and is not refused
    (there / "link").unlink()
    (there / "out").rename("moved")
    *_, moved = planned(only="^kd$", out="moved")
    assert plan.continued(moved) == moved
    there_now = json.loads((moved.folder / "config.json").read_text())
    same_run(moved.folder, plan._resolve(moved.config), there_now)
    assert there_now["teacher"].pop("checkpoint") == moved.config["teacher"]["checkpoint"]
    del config["teacher"]["checkpoint"]
    assert there_now == json.loads(json.dumps(config))


def test_the_folder_of_another_run_is_not_touched(there):
    go(Run(planned()), Fake())
    before = helpers.contents(there / "out" / "runs")
    write("cells[1].config.epochs = 7")
    engine = Fake()
    found = go(Run(planned()), engine)
    assert (found["kd"], found["kd2"], engine.started) == (FAILED, DONE, [])
    assert "holds a run of another configuration (epochs: 240 -> 7)" in failure("kd")["error"]
    assert helpers.contents(there / "out" / "runs") == before


def test_a_task_that_cannot_be_read_fails_alone(there):
    go(Run(planned()), Fake())
    pathlib.Path("out/runs/kd/task.json").write_text("{")
    found = go(Run(planned()), Fake())
    assert found["kd"] == FAILED
    assert "holds no task of a grid" in failure("kd")["error"]
    assert {state for name, state in found.items() if name != "kd"} == {DONE}


# ------------------------------------------------------------------------------------------------ what fails


def test_a_failing_cell_is_written_down_and_the_rest_goes_on(there):
    log = there / "out" / "runs" / "kd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    engine = Fake({"runs/kd": "the loss became NaN"})
    found = go(Run(planned()), engine)
    assert {name for name, state in found.items() if state == FAILED} == {"kd"}
    assert [name for name, state in found.items() if state == DONE][-2:] == ["kd2", "dkd"]
    written = failure("kd")
    assert (written["name"], written["error"]) == ("kd", "the loss became NaN")
    assert written["log"][-1] == "line 99"
    assert written["date"].endswith("+00:00")
    again = Fake()
    assert set(go(Run(planned()), again).values()) == {DONE}
    assert again.started == ["runs/kd"]
    assert list((there / "out" / "failed").iterdir()) == []


def test_what_needs_a_failed_teacher_fails_with_it(there):
    (teacher,) = [task.name for task in planned() if task.name.startswith("teachers/")]
    engine = Fake({teacher: "no memory"})
    found = go(Run(planned()), engine)
    assert {name for name, state in found.items() if state == DONE} == {"alone"}
    assert engine.started == ["runs/alone", teacher]
    assert failure("dkd")["error"] == f"its teacher {teacher} failed: no memory"
    assert failure(teacher.partition("/")[2])["error"] == "no memory"


def test_a_process_that_leaves_no_summary_has_failed(there):
    engine = Fake()
    engine.errors = {"runs/kd": None}
    real, engine.start = engine.start, lambda task: None

    def start(task):
        real(task)
        if task.name == "runs/kd":
            (task.folder / "summary.json").unlink()

    engine.start = start
    assert go(Run(planned()), engine)["kd"] == FAILED
    assert "left no summary.json" in failure("kd")["error"]


@pytest.mark.parametrize(
    ("code", "printed", "said"),
    [
        (0, "nothing of interest", None),
        (2, "epoch 1\ngkd_jax: teacher.model must be better\n", "teacher.model must be better"),
        (1, "Traceback (most recent call last):\n  File\nKeyError: 'x'\n---\nA note\n\n", "exit code 1: KeyError: 'x'"),
        (1, "", "exit code 1: it printed nothing"),
        (-9, "", "killed by SIGKILL; the system kills so where memory runs out"),
        (137, "epoch 3", "killed by SIGKILL"),
        (-11, "", "killed by SIGSEGV"),
        (-200, "", "killed by signal 200"),
        (143, "gkd_jax: student: stopped by SIGTERM after step 4, which is saved\n", "after step 4, which is saved"),
    ],
)  # fmt: skip
def test_why_a_process_ended(code, printed, said):
    found = process.error(code, printed)
    assert found == said if said is None else said in found
    assert found is None or "\n" not in found


# ------------------------------------------------------------------------------------------- other processes


def test_a_run_that_another_process_is_at_work_on_is_told(tmp_path):
    task = tasks.Task("runs/x", tmp_path, "grid.py", {})
    assert not plan.held(task)
    with alone_in(tmp_path):
        assert plan.held(task)
        with pytest.raises(AtWork), alone_in(tmp_path):
            pass
    assert not plan.held(task)


def test_a_worker_that_comes_second_says_so_by_its_exit_code(there, monkeypatch, capsys):
    (task,) = planned(only="alone")
    tasks.write(task)

    def execute(command):
        with alone_in(command.workdir):
            raise AssertionError

    monkeypatch.setattr(worker, "execute", execute)
    with alone_in(task.folder), helpers.registrations():
        assert worker.main([str(task.folder / "task.json")]) == process.AT_WORK == 75
    assert process.error(process.AT_WORK, capsys.readouterr().err).startswith(f"{task.folder}: another process")


def test_a_shard_waits_for_a_teacher_and_takes_it_over_from_a_dead_one(there):
    (teacher,) = [task for task in planned() if task.name.startswith("teachers/")]
    tasks.write(teacher)
    lock = (teacher.folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    seen = []
    run, engine = Run(planned()), Fake()

    def looked(run):
        seen.append((run.status[teacher.name].elsewhere, tuple(engine.started)))
        if len(seen) == 20:
            lock.close()  # as when the process dies

    run.go(engine, lambda: False, looked)
    assert seen[5] == (True, ("runs/alone",))
    assert engine.started == ["runs/alone", teacher.name, "runs/kd", "runs/kd2", "runs/dkd"]


def test_a_shard_takes_a_teacher_that_another_one_finished(there):
    (teacher,) = [task for task in planned() if task.name.startswith("teachers/")]
    tasks.write(teacher)
    lock = (teacher.folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    run, engine, looks = Run(planned()), Fake(), []

    def looked(run):
        looks.append(0)
        if len(looks) == 10:
            finish(teacher)
            lock.close()

    run.go(engine, lambda: False, looked)
    assert engine.started == ["runs/alone", "runs/kd", "runs/kd2", "runs/dkd"]


def test_who_comes_second_to_a_lock_waits(there):
    (teacher,) = [task.name for task in planned() if task.name.startswith("teachers/")]
    engine = Fake({teacher: AT_WORK})
    assert set(go(Run(planned()), engine).values()) == {DONE}
    assert engine.started.count(teacher) == 2
    assert not (there / "out" / "failed").exists()


# ------------------------------------------------------------------------------------------------ processes

# In place of the worker; its folder's name says what it does
STUB = """
import fcntl, json, os, pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1]).parent
with (folder.parent.parent / "starts").open("a") as file:
    file.write(f"{folder.parent.name}/{folder.name}\\n")
lock = (folder / ".lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)

def save(number, frame):
    print("gkd_jax: student: stopped by SIGTERM after step 4, which is saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print(*sys.argv[2:], flush=True)
if "kd2" in folder.name and (folder.parent.parent / "crash").exists():
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "at_work").touch()
slow = folder.parent.parent / "slow"
while slow.exists() and slow.read_text() in str(folder):
    time.sleep(0.02)
time.sleep(0.2)
(folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def local(there):
    """An engine whose workers are the stub."""
    (there / "out").mkdir()
    (there / "stub.py").write_text(STUB)

    def create(workers=1):
        # -I: nothing but the standard library, which starts at once
        return LocalEngine(
            workers, lambda task: [sys.executable, "-I", "-S", "stub.py", str(task.folder / "task.json")]
        )

    return create


def starts():
    return pathlib.Path("out/starts").read_text().split()


def until(said):
    deadline = time.monotonic() + 120
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_is_killed_has_failed_and_is_tried_again(local):
    pathlib.Path("out/crash").touch()
    engine = local(2)
    found = go(Run(planned()), engine)
    assert (found["kd2"], found["kd"], found["dkd"]) == (FAILED, DONE, DONE)
    assert "killed by SIGKILL" in failure("kd2")["error"]
    assert failure("kd2")["log"][-1].startswith("--leash")
    pathlib.Path("out/crash").unlink()
    assert set(go(Run(planned()), engine).values()) == {DONE}
    assert sorted(starts()) == sorted([*(task.name for task in planned()), "runs/kd2"])
    if len(os.sched_getaffinity(0)) == 2:
        logs = [(task.folder / "log.txt").read_text().splitlines() for task in planned()]
        assert {line for log in logs for line in log} == {"--leash --cores 0", "--leash --cores 1"}
    engine.close()


def test_shards_share_one_teacher_and_do_every_cell_once(local):
    """At once, in two threads; the second begins when the first is at work on the teacher."""
    (teacher,) = [task for task in planned() if task.name.startswith("teachers/")]
    slow = pathlib.Path("out/slow")
    runs = [Run(planned(shard=(i, 2))) for i in (2, 1)]
    engines = [local(), local()]
    threads = [threading.Thread(target=go, args=each) for each in zip(runs, engines, strict=True)]
    slow.write_text("teachers/")
    threads[0].start()
    until((teacher.folder / "at_work").exists)
    threads[1].start()
    until(lambda: runs[1].status[teacher.name].elsewhere)
    slow.unlink()
    for thread in threads:
        thread.join(120)
    assert [cell for run in runs for cell in run.cells] == ["runs/kd", "runs/dkd", "runs/alone", "runs/kd2"]
    assert all(run.those(DONE) == [*run.tasks] for run in runs)
    assert sorted(starts()) == sorted(task.name for task in planned())
    for engine in engines:
        engine.close()


def test_a_process_that_comes_second_to_a_lock_has_not_failed(local):
    (task,) = planned(only="alone")
    tasks.write(task)
    engine = local()
    with alone_in(task.folder):
        engine.start(task)
        found = engine.wait(120)
    assert [(outcome.name, outcome.elsewhere) for outcome in found] == [(task.name, True)]
    engine.close()


def test_closing_lets_runs_save_themselves(local):
    pathlib.Path("out/slow").write_text("runs/alone")
    run, engine = Run(planned()), local()
    run.go(engine, lambda: (pathlib.Path("out/runs/alone/at_work")).exists())
    assert run.status["runs/alone"].state == RUNNING
    engine.close()
    assert "stopped by SIGTERM" in pathlib.Path("out/runs/alone/log.txt").read_text()
    assert engine.room()


def test_a_worker_lets_itself_be_ended_with_who_started_it(monkeypatch):
    ends, killed = os.pipe(), []
    os.close(ends[1])
    monkeypatch.setattr(worker.os, "kill", lambda *given: killed.append(given))
    monkeypatch.setattr(worker.os, "read", lambda number, size, real=os.read: real(ends[0], size))
    worker._leash()
    os.close(ends[0])
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_a_worker_keeps_to_its_cores_and_says_what_is_wrong_with_its_task(tmp_path, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda *given: kept.append((given[0], [*given[1]])))
    assert worker.main([str(tmp_path / "task.json"), "--cores", "0,1"]) == 2
    assert kept == [(0, [0, 1])]
    assert capsys.readouterr().err == f"gkd_jax: cannot read {tmp_path / 'task.json'}: No such file or directory\n"
