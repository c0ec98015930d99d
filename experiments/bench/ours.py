"""Our side in a process of its own: the step that `gkd_jax.main` would run, on noise, with networks nobody trained.

    python -m experiments.bench.ours

It speaks as `experiments.torch_peer.worker` does: a line of JSON with the setup, then `{"steps": n}` as often as one
likes, then `{"finish": true}`.

    {"pair": ["resnet56", "resnet20"], "objective": "kd", "batch": 64, "num_classes": 100, "cache": "none",
     "student_only": false, "seeds": 1, "seed_strategy": "auto", "solver": "unrolled", "dtype": "auto",
     "images": 50000, "epochs": 240, "cpu_devices": "auto", "steps_per_call": "auto", "compilation_cache": "off"}
"""

import glob
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from experiments.bench import work
from experiments.bench.protocol import OBJECTIVES, Answer, answer_all, held_in, on_standard_streams
from gkd_jax import machine
from gkd_jax.config import NO_CACHE
from gkd_jax.errors import UserError

# A line of the objective for each part of its name
_TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "w": ("wasserstein", {}),
    "cg": ("gradient", {"wrt": "classifier"}),
    "gm": ("gradient", {"wrt": "input"}),
}
_FILLED = 2.0  # seconds that the rate of a fill is measured for, after the call that compiles
_WARMUP = 3
_PROFILED = 2
_IMAGES = 50_000  # that a run trains on
_TESTED = 10_000  # images of an evaluation
_EVALUATIONS = 3  # that are timed, the fastest of which is told


def configuration(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the resolved configuration of a setup."""
    from gkd_jax import config, objective
    from gkd_jax.training.resolve import resolve

    given = config.default()
    given.teacher.model, given.student.model = setup["pair"]
    given.batch_size, given.epochs, given.dtype = setup["batch"], setup["epochs"], setup["dtype"]
    given.optimizer.learning_rate = config.standard_rate(setup["pair"][1])
    given.steps_per_call = setup["steps_per_call"]
    if setup["seeds"] > 1:
        given.seeds, given.seed_strategy = tuple(range(setup["seeds"])), setup["seed_strategy"]
    parts = OBJECTIVES[setup["objective"]]
    for part in parts:
        term, options = _TERMS[part]
        if part == "w":
            options = {"solver": setup["solver"]}
        given.objective.terms[part] = objective.block(term, **options)
    given.teacher.cache = setup["cache"]
    if setup["student_only"]:  # given outputs are looked up, whatever they are
        given.teacher.cache = held_in(setup["objective"])
    given.teacher.cache_dir = "off"
    return resolve(given)


def fill(views: int, *, epochs: int, per_epoch: int, seeds: int, batch: int) -> tuple[str, int]:
    """Returns how a run would fill the empty cache of so many views, and by how many of the teacher's forwards.

    Args:
      views: of all images.
      epochs: of the run.
      per_epoch: views looked up in an epoch, those of all seeds together.
      seeds: that draw batches of their own.
      batch: views that are computed at a time.
    """
    from gkd_jax.training import cost

    found = cost.forwards(views, size=views, epochs=epochs, per_epoch=per_epoch, batch=batch, seeds=seeds)
    return found.how, min(found)


def program_of(setup: Mapping[str, Any]) -> Any:
    """Returns the program of a setup, on noise."""
    from experiments import synthetic
    from gkd_jax.training.program import Program

    resolved = configuration(setup)
    job = synthetic.job(resolved, setup["pair"][0], images=setup["images"], classes=setup["num_classes"])
    program = Program(job)
    if program.recall is not None:
        program.recall.how = "by epoch"  # of all views only those that are seen
    return program


class Ours:
    """A program with its state, ready to train."""

    def __init__(self, setup: Mapping[str, Any]):
        """Builds and compiles it."""
        import jax

        from gkd_jax import models

        self.form = models.conv_form(jax.default_backend())
        self._jax, self._setup = jax, setup
        self.program, self.step = program_of(setup), 0
        self.job = self.program.job
        self.state, self._frozen = self.program.initial()
        self.fixed = self.program.fixed(self._frozen)
        self.fill_rate = self._measure_fill()
        self.plan = self.program.plan(0)
        if self.job.config["teacher"]["cache"] != NO_CACHE and self.program.recall is None:
            raise UserError("the teacher's cache is of no use here, for the reason above; measure with --cache none")
        start = time.perf_counter()
        self.program.compile_all(0, self.state, self.plan, self.fixed)
        self.compile_seconds = time.perf_counter() - start
        self.run(max(_WARMUP, self.program.chunk))

    def _measure_fill(self) -> float | None:
        """Returns the views a second that the teacher fills the cache with; the first call, which compiles, apart."""
        if self.program.recall is None:
            return None
        import numpy as np

        from gkd_jax.training import recall

        cache = self.program.recall.cache
        last = len(self.job.dataset.train_labels) * self.job.dataset.num_views
        batch = done = min(recall.views_at_once(self._jax.devices()[0].platform), last // 3)
        cache.fill(np.arange(batch))
        compiled, filled = cache.seconds, 0
        while cache.seconds - compiled < _FILLED and done < last:
            more = min(max(batch, filled), last - done)  # twice as many each time: no call is short for long
            cache.fill(np.arange(done, done + more))
            done, filled = done + more, filled + more
        return filled / (cache.seconds - compiled)

    def run(self, steps: int) -> dict[str, Any]:
        """Trains for at least `steps` steps, as the loop of a run does, epoch after epoch.

        Every epoch is the first one, so that a cache holds all of it: the plan is drawn, and its rows are looked up.
        """
        jax, program, per_epoch = self._jax, self.program, self.job.steps_per_epoch
        jax.block_until_ready(self.state)
        start, done = time.perf_counter(), 0
        while done < steps:
            if self.step % per_epoch == 0:
                self.plan = program.plan(0)
            count = program.call_at(self.step)
            call = program.step_at(self.step, self.state, self.plan, self.fixed, count)
            self.state = program.ended(call(self.state, self.plan, self.fixed))
            self.step = (self.step + count) % self.job.total_steps
            done += count
        jax.block_until_ready(self.state)
        return {"seconds": time.perf_counter() - start, "steps": done}

    def ready(self) -> dict[str, Any]:
        """Returns what to say about it."""
        device = self._jax.devices()[0]
        program = self.program
        return {
            "ready": True,
            "compile_seconds": self.compile_seconds,
            "device": device.device_kind,
            "platform": device.platform,
            "devices": len(program.devices),
            "convolutions": self.form,
            "jax": self._jax.__version__,
            "dtype": self.job.config["dtype"],
            "steps_per_call": program.chunk,
            "seed_strategy": program.strategy,
            "config": self.job.config,
            "fill": self._fill(),
        }

    def _fill(self) -> dict[str, Any] | None:
        if self.program.recall is None or self.fill_rate is None:
            return None
        from gkd_jax.training import recall

        setup, seeds = self._setup, max(len(self.program.seeds), 1)
        how, forwards = fill(
            _IMAGES * self.job.dataset.num_views,
            epochs=self.job.config["epochs"],
            per_epoch=_IMAGES // setup["batch"] * setup["batch"] * seeds,
            seeds=seeds,
            batch=recall.views_at_once(self._jax.devices()[0].platform),
        )
        seconds = forwards / self.fill_rate
        return {
            "images_per_second": self.fill_rate,
            "forwards": forwards,
            "how": how,
            "seconds": seconds,
            "extrapolated": True,
        }

    def _evaluation_seconds(self) -> float:
        """Returns the seconds that the evaluation of all students on 10,000 images takes, its compilation apart.

        As many of these are evaluated as there are training images, and the rest is taken to cost as much.
        """
        import numpy as np

        from gkd_jax.training import evaluate, members

        images = self.job.dataset.train_images[:_TESTED]
        labels = np.zeros(len(images), np.int32)
        mean, std, devices = self.job.dataset.mean, self.job.dataset.std, self.program.devices
        evaluator = evaluate.Evaluator(self.program.networks.student, images, labels, mean, std, devices)
        variables, seeds = self.state.evaluated(self._frozen), self.program.seeds
        if seeds:
            variables = members.one({**self.state.evaluated({}), **self._frozen}, 0)
        evaluator(variables)
        taken = []
        for _ in range(_EVALUATIONS):
            start = time.perf_counter()
            evaluator(variables)  # its answer is on the host
            taken.append(time.perf_counter() - start)
        return min(taken) * _TESTED / len(images) * max(len(seeds), 1)

    def finish(self) -> dict[str, Any]:
        """Returns peak memory, the work of a step by XLA's count, and the seconds of an evaluation."""
        jax = self._jax
        stats = jax.devices()[0].memory_stats()
        peak = stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found: dict[str, Any] = {"peak_bytes": peak, "evaluation_seconds": self._evaluation_seconds()}
        # The program that ran. XLA counts a loop's body once, which is a period of the lines' `every`
        count = self.program.call_at(0)
        ran: Any = self.program.step_at(0, self.state, self.plan, self.fixed, count)
        costs, steps = self._counted(ran).cost_analysis(), self.program.period if count > 1 else 1
        flops, moved = costs.get("flops", 0.0), costs.get("bytes accessed", 0.0)
        if jax.devices()[0].platform == "cpu":
            # Of one device; a CPU's devices are one machine, whose rates are known
            devices = len(self.program.devices)
            found |= {"flops": devices * flops / steps, "bytes": devices * moved / steps}
            return found | {"ops_per_step": _instructions(ran.as_text())}
        if jax.devices()[0].platform == "gpu":
            flops = work.flops(self._setup, len(self.program.devices))
            moved = (moved + work.library_bytes(ran.as_text())) / steps
        return found | {"flops": flops, "bytes": moved, "launches_per_step": self._launches()}

    def _counted(self, step: Any) -> Any:
        """Returns the step in plain convolutions if it has kernels of our own: XLA does not know what these do."""
        if self.form != "native":
            return step
        from gkd_jax import models

        with models.fixed_form("plain"):
            program = program_of({**self._setup, "images": self._setup["batch"]})
            state, frozen = program.initial()
            return program.step_at(0, state, program.plan(0), program.fixed(frozen))

    def _launches(self) -> float | None:
        """Returns the kernels that a step starts on the first device, by the profiler; None if it does not tell."""
        jax = self._jax
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                done = self.run(_PROFILED)["steps"]
            files = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
            if not files or not hasattr(jax.profiler, "ProfileData"):
                return None
            planes = jax.profiler.ProfileData.from_file(files[0]).planes
            counts = [
                sum(1 for event in line.events if not event.name.startswith(("Memcpy", "Memset")))
                for plane in planes
                if plane.name.startswith("/device:GPU:0")
                for line in plane.lines
                if line.name.startswith("Stream")
            ]
        return sum(counts) / done if counts else None


def _instructions(text: str) -> int:
    """Returns the instructions of a compiled program's main part that do something."""
    entry = text[text.index("\nENTRY ") :].split("\n}")[0].splitlines()[2:]
    free = ("parameter(", "constant(", "tuple(", "get-tuple-element(", "bitcast(", "copy-done(")
    return sum(" = " in line and not any(f" {name}" in line for name in free) for line in entry)


def serve(lines: Any, answer: Answer) -> None:
    """Answers `lines` until one says "finish", or they end."""
    setup = json.loads(next(lines))
    machine.prepare(setup["cpu_devices"])
    machine.keep_compiled(setup["compilation_cache"])
    ours = Ours(setup)
    answer(ours.ready())
    answer_all(lines, answer, ours.run, ours.finish)


if __name__ == "__main__":
    on_standard_streams(serve)
