"""A small grid, and engines that run nothing or little scripts."""

import json
import pathlib

from experiments.grid import cells, plan, tasks
from experiments.grid.tasks import Outcome

FILE = '''
"""A grid of a test."""

from experiments.grid.cells import Cell, Grid
from gkd_jax import config, recipes


def get_grid():
    def cell(name, method, **more):
        c = recipes.standard("resnet20", "resnet8", "digits", method)
        c.seeds = (0, 1)
        c.update(more)
        return Cell(name, c, {"method": method})

    cells = [cell("alone", "alone"), cell("kd", "kd"), cell("kd2", "kd", seeds=(2, 3), epochs=3), cell("dkd", "dkd")]
    MORE
    return Grid("A test", tuple(cells), {"method": "kd"})
'''


def write(more="pass", file="small.py"):
    pathlib.Path(file).write_text(FILE.replace("MORE", more))


def planned(file="small.py", out="out", **how):
    return plan.plan(plan.choose(cells.load(file).cells, **how), file, plan.place(pathlib.Path(out)))


def finish(task, **more):
    (task.folder / "summary.json").write_text(json.dumps({"seconds": 8.0, "student": {"test_accuracy": 0.5}, **more}))


def failure(name):
    return json.loads(pathlib.Path("out/failed", f"{name}.json").read_text())


AT_WORK = "as a worker that comes second to a lock"


class Fake:
    """Runs every task at once, in no time; `errors` says which fail, and how, or that they are at work elsewhere."""

    def __init__(self, errors=(), workers=1):
        self.errors, self.workers, self.started, self.ended, self.closed = dict(errors), workers, [], [], False

    def slots(self):
        return self.workers

    def room(self):
        return len(self.ended) < self.workers

    def start(self, task):
        assert tasks.read(task.folder / "task.json") == task
        self.started.append(task.name)
        error = self.errors.pop(task.name, None)
        if error is None:
            finish(task)
        self.ended.append(Outcome(task.name, error, 1.0, error == AT_WORK))

    def wait(self, timeout):
        ended, self.ended = self.ended, []
        return ended

    def close(self):
        self.closed = True


def go(run, engine):
    run.go(engine, lambda: False)
    return {name.removeprefix("runs/"): status.state for name, status in run.status.items()}
