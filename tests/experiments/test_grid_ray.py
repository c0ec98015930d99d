"""Tasks on a Ray cluster: two nodes of one core each on this machine, one of which dies."""

import json
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import helpers
import numpy as np
import pytest

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from experiments.grid import __main__ as command_line  # noqa: E402
from experiments.grid import ray_engine, tasks  # noqa: E402
from experiments.grid.ray_engine import RayEngine, serve, slots  # noqa: E402
from experiments.grid.tasks import Outcome, Task  # noqa: E402
from gkd_jax.errors import UserError  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # where a test before has computed with JAX: Ray forks to start a cluster's processes, in which no JAX runs
    pytest.mark.filterwarnings("ignore:os.fork\\(\\) was called:RuntimeWarning"),
]

# In place of the worker. Its folder's name says what it does; `go` beside the folder lets those that wait end.
STUB = """
import os, pathlib, select, signal, sys, time

folder = pathlib.Path(sys.argv[1]).parent

def note(file, text):
    with (folder / file).open("a") as stream:
        stream.write(text + "\\n")

def save(number, frame):
    note("signals", signal.Signals(number).name)
    time.sleep(1.0)
    note("saved", "all")
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
note("starts", str(os.getpid()))
print("in", os.getcwd(), sys.path[1], flush=True)
if "fails" in folder.name:
    print("Traceback ...", file=sys.stderr)
    sys.exit("gkd_jax: weight=-1: a weight is not negative")
if "second" in folder.name:
    sys.exit(75)
while not (folder.parent / "go").exists():
    if select.select([sys.stdin], [], [], 0.05)[0]:
        os._exit(1)
note("done", "yes")
"""
# A grid of one cell and its teacher. Each start of either is noted, with the node: the process that started Ray's own.
GRID = """
import os
import pathlib
import sys

sys.path.insert(0, {tests!r})

import helpers

from experiments.grid.cells import Cell, Grid
from gkd_jax import config, models, objective


@models.register("ray_speck")
def speck(num_classes, dtype, conv):
    return helpers.Speck(num_classes, 6, models.Compute(dtype, conv))


def parent(pid):
    return int(pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[1])


def get_grid():
    if sys.argv[0].endswith("worker.py"):
        folder = pathlib.Path(sys.argv[1]).parent
        with (folder / "starts").open("a") as file:
            file.write(f"{{os.getpid()}} {{os.getppid()}} {{parent(os.getppid())}}\\n")
    c = config.default()
    c.epochs, c.batch_size, c.cpu_devices, c.compilation_cache = 40, 16, 1, {cache!r}
    c.data.source, c.data.val_fraction, c.data.pad, c.data.flip = "npz:images.npz", 0.2, 1, False
    c.teacher.model, c.teacher.epochs, c.teacher.batch_size = "ray_speck", 1, 16
    c.student.model = "ray_speck"
    c.plots = c.tensorboard = False
    c.objective.terms.kd = objective.block("kd")
    return Grid("A test", (Cell("kd", c, {{"method": "kd"}}),))
"""
PATIENCE = 60.0  # seconds until a test gives up; none takes as long


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    before = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)  # which every node of a cluster replaces


@pytest.fixture
def nodes(cluster: Cluster) -> list:
    """Two nodes, whatever a test before did to them."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, resources={"slot": 1})
    cluster.wait_for_nodes()
    return list(cluster.worker_nodes)


def _engine(cluster: Cluster, tmp_path: pathlib.Path, **more: int) -> RayEngine:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    return RayEngine(
        {"num_cpus": 1, "slot": 1},
        cluster.address,
        command=lambda task: [sys.executable, str(stub), str(task.folder / tasks.TASK)],
        **more,
    )


@pytest.fixture
def engine(cluster: Cluster, nodes: list, tmp_path: pathlib.Path) -> Iterator[RayEngine]:
    engine = _engine(cluster, tmp_path)
    yield engine
    engine.close()


def _task(tmp_path: pathlib.Path, name: str) -> Task:
    task = Task(f"runs/{name}", tmp_path / "runs" / name, "grid.py", {})
    tasks.write(task)
    return task


def _lines(task: Task, file: str) -> list[str]:
    path = task.folder / file
    return path.read_text().splitlines() if path.exists() else []


def _until(said: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.01)


def _ended(engine: RayEngine, count: int) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {sorted(found)} ended"
        found.update({outcome.name: outcome for outcome in engine.wait(1.0)})
    return found


def _alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_task_whose_node_died_is_started_again(engine: RayEngine, cluster: Cluster, tmp_path: pathlib.Path):
    given = [_task(tmp_path, f"waits{number}") for number in range(4)]
    for task in given:
        assert engine.room()
        engine.start(task)
    assert not engine.room()  # two run, two are queued
    assert engine.wait(0.01) == []
    _until(lambda: sum(len(_lines(task, "starts")) for task in given) == 2)

    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    _until(lambda: not all(_alive(int(_lines(task, "starts")[0])) for task in given if _lines(task, "starts")))
    (tmp_path / "runs" / "go").touch()
    found = _ended(engine, 4)

    assert {name: outcome.error for name, outcome in found.items()} == {task.name: None for task in given}
    assert sorted(len(_lines(task, "starts")) for task in given) == [1, 1, 1, 2]
    assert all(_lines(task, "done") == ["yes"] for task in given)
    assert all(0 < outcome.seconds < PATIENCE for outcome in found.values())
    assert f"in {os.getcwd()} {ray_engine.ROOT}" in (given[0].folder / tasks.LOG).read_text()
    assert engine.room()


def _lose_the_node(cluster: Cluster, run: pathlib.Path, trouble: list[BaseException]) -> None:
    """Takes away the node that trains a run, in the middle of it."""
    try:
        _until(lambda: any(file.name.isdigit() for file in run.glob("checkpoints/*")), 4 * PATIENCE)
        task, serving, raylet = map(int, (run / "starts").read_text().split())
        os.kill(task, signal.SIGSTOP)  # or it would be done before its node is
        (node,) = [n for n in cluster.worker_nodes if raylet in (p.process.pid for p in n.all_processes["raylet"])]
        cluster.remove_node(node, allow_graceful=False)
        _until(lambda: not _alive(serving))
        os.kill(task, signal.SIGCONT)
    except BaseException as error:  # of a thread: for the test to raise
        trouble.append(error)


def test_a_run_whose_node_died_goes_on_from_its_checkpoint_on_the_other(
    cluster: Cluster, nodes: list, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, compilation_cache: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    np.savez("images.npz", **helpers.images())
    given = {"tests": str(ray_engine.ROOT / "tests"), "cache": str(compilation_cache)}
    pathlib.Path("grid.py").write_text(GRID.format(**given))
    run, trouble = tmp_path / "out" / "runs" / "kd", []
    loss = threading.Thread(target=_lose_the_node, args=(cluster, run, trouble))
    loss.start()
    flags = ("--engine", "ray", "--resources", "num_cpus=1,slot=1")
    with helpers.registrations():
        status = command_line.main(["--grid", "grid.py", "--out", "out", *flags])
    loss.join()
    if trouble:
        raise trouble[0]

    log = (run / tasks.LOG).read_text()
    assert status == 0, log
    summary = json.loads((run / "summary.json").read_text())
    assert summary["student"]["steps"] == 40 * 4
    assert summary["teacher"]["test_accuracy"] > 0  # it was trained here too, and read
    first, *others = [line.split() for line in (run / "starts").read_text().splitlines()]
    assert others
    assert all(node != first[2] for _, _, node in others)
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [*range(1, 41)]
    # What the checkpoint had behind it was not trained again
    assert [len(re.findall(rf"student +epoch +{epoch}/40 ", log)) for epoch in (1, 40)] == [1, 1]


def test_what_failed_says_why(engine: RayEngine, tmp_path: pathlib.Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "go").touch()
    well, ill = _task(tmp_path, "well"), _task(tmp_path, "fails")
    ill_before = ill.folder / tasks.LOG
    ill_before.write_text("of an earlier try\n")
    engine.start(well)
    engine.start(ill)
    found = _ended(engine, 2)
    assert found[well.name].error is None
    assert found[ill.name].error == "its process ended with exit code 1: weight=-1: a weight is not negative"
    assert ill_before.read_text().startswith("of an earlier try\n")


def test_close_lets_the_runs_save_themselves(engine: RayEngine, tmp_path: pathlib.Path):
    given = [_task(tmp_path, f"waits{number}") for number in range(3)]
    for task in given:
        engine.start(task)
    _until(lambda: sum(len(_lines(task, "starts")) for task in given) == 2)
    engine.close()
    ran = [task for task in given if _lines(task, "starts")]
    assert len(ran) == 2
    assert all(_lines(task, "signals") == ["SIGTERM"] for task in ran)
    assert all(_lines(task, "saved") == ["all"] for task in ran)
    assert not any(_alive(int(_lines(task, "starts")[0])) for task in ran)
    engine.close()  # nothing more to do


def test_a_crash_of_a_task_is_none_of_ray(engine: RayEngine, tmp_path: pathlib.Path):
    task = _task(tmp_path, "waits")
    engine.start(task)
    _until(lambda: _lines(task, "starts"))
    os.kill(int(_lines(task, "starts")[0]), signal.SIGSEGV)
    error = _ended(engine, 1)[task.name].error
    assert error is not None
    assert "SIGSEGV" in error
    assert len(_lines(task, "starts")) == 1


def test_a_task_that_another_process_is_at_work_on(cluster: Cluster, nodes: list, tmp_path: pathlib.Path):
    engine, task = _engine(cluster, tmp_path), _task(tmp_path, "second")
    try:
        assert engine.slots() >= 1
        engine.start(task)
        assert _ended(engine, 1)[task.name].elsewhere
    finally:
        engine.close()


def test_a_task_that_ray_gives_up(cluster: Cluster, nodes: list, tmp_path: pathlib.Path):
    engine, task = _engine(cluster, tmp_path, retries=0), _task(tmp_path, "waits")
    try:
        engine.start(task)
        _until(lambda: _lines(task, "starts"))
        stat = pathlib.Path(f"/proc/{_lines(task, 'starts')[0]}/stat").read_text()
        os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)  # its parent, Ray's process
        outcome = _ended(engine, 1)[task.name]
        assert outcome.error is not None
        assert outcome.error.startswith("Ray gave it up: The worker died unexpectedly while executing this task.")
        assert "\n" not in outcome.error
        _until(lambda: not _alive(int(_lines(task, "starts")[0])))  # the leash
    finally:
        engine.close()


def test_resources_that_no_node_has(cluster: Cluster, nodes: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with pytest.raises(UserError, match="no node of the Ray cluster has CPU=1, GPU=2 for a task; they have: .*GPU=0"):
        RayEngine({"num_gpus": 2})
    assert not ray.is_initialized()


def test_no_cluster_at_the_address():
    with pytest.raises(UserError, match="there is no Ray cluster at 127.0.0.1:1 "):
        RayEngine({}, "127.0.0.1:1")
    for address in ("ray://127.0.0.1:10001", "somewhere", "127.0.0.1:"):
        with pytest.raises(UserError, match="is no address of a Ray cluster"):
            RayEngine({}, address)


def test_half_of_more_than_one():
    with pytest.raises(UserError, match="num_gpus=1.5: Ray reserves whole numbers, and parts of one"):
        RayEngine({"num_gpus": 1.5})


def test_the_sigterm_handler_of_the_process_stays(request: pytest.FixtureRequest, nodes: list):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        request.getfixturevalue("engine")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_how_many_the_nodes_hold():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 64.0}]
    assert slots(nodes, {"CPU": 1, "GPU": 0.5}) == 4 + 3
    assert slots(nodes, {"CPU": 2}) == 4 + 1 + 32
    assert slots(nodes, {"CPU": 2, "GPU": 0}) == 4 + 1 + 32
    assert slots(nodes, {"CPU": 1, "tpu": 1}) == 0


def _lacking(command: list[str], where: pathlib.Path, root: pathlib.Path, folder: pathlib.Path) -> str:
    said, code, seconds = serve(command, str(where), str(root), str(folder), 0.0)
    assert said is not None
    assert code
    assert seconds == 0
    return said


def test_what_a_node_lacks(tmp_path: pathlib.Path):
    command, root, folder = [sys.executable, "-c", "pass"], ray_engine.ROOT, _task(tmp_path, "any").folder
    unseen = "task.json: --out must be a folder that all nodes share"
    assert _lacking(command, root, root, tmp_path).endswith(unseen)
    assert _lacking(command, root, tmp_path, folder).endswith(f"has no repository of gkd_jax in {tmp_path}")
    assert f"has no folder {tmp_path / 'none'}" in _lacking(command, tmp_path / "none", root, folder)
    elsewhere = [str(tmp_path / "python"), "-c", "pass"]
    assert "all nodes need Python and gkd_jax at the same path" in _lacking(elsewhere, root, root, folder)


def test_a_part_of_a_gpu_is_a_part_of_its_memory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    task = _task(tmp_path, "any")
    command = [sys.executable, "-c", "import os; print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'))"]
    for gpus in (0.5, 1.0):
        assert serve(command, str(tmp_path), str(ray_engine.ROOT), str(task.folder), gpus)[:2] == (None, 0)
    assert (task.folder / tasks.LOG).read_text().split() == ["0.450", "None"]
