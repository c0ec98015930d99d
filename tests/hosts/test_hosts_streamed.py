"""Two processes that read a set which is streamed, and keep views of its teacher, are what one is with two devices."""

import json
import pathlib
import sys

import pytest
import together

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import tfds_case  # noqa: E402

from gkd_jax.data.stream import kept  # noqa: E402
from gkd_jax.training.loop import METRICS  # noqa: E402

pytestmark = pytest.mark.slow
pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")

ONE_EACH = "--config.cpu_devices=1"
TIMES = ("seconds", "seconds_cache", "seconds_compile", "images_per_second")
# 58 images are trained on, in five files of kept views instead of one: so that both processes have some to compute
MORE = """
    from gkd_jax.data.stream import kept
    kept.PART = 12
    c.epochs, c.batch_size, c.teacher.batch_size = 2, 8, 8
    c.data.source, c.data.data_dir, c.data.image_size = "tfds:tiny", "{folder}", 8
    c.data.pad, c.data.flip, c.data.workers = 0, True, 0
"""


@pytest.fixture(scope="module")
def start(folder, compilation_cache):
    """As in `conftest`, on a set of JPEGs."""
    images = {"train": tfds_case.photographs(72), "validation": tfds_case.photographs(11, seed=1)}
    tfds_case.write(folder, "tiny", images, classes=4)
    file = together.write_config(folder, MORE.format(folder=folder).strip())

    def begin(name, count, *arguments):
        given = ("--config", file, "--workdir", folder / name, *arguments)
        return together.start(count, *given, cache=compilation_cache, logs=folder / "logs")

    return begin


@pytest.fixture(autouse=True)
def _files_of_kept_views(monkeypatch):
    """What the configuration changes in this process is undone."""
    monkeypatch.setattr(kept, "PART", kept.PART)


def left_by(workdir):
    """Returns the hashes of both networks, what was measured of them, and the record of every epoch."""
    summary = json.loads((workdir / "summary.json").read_text())
    measured = [
        {k: v for k, v in summary[name].items() if k not in ("seconds", "workdir")} for name in ("teacher", "student")
    ]
    lines = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return measured, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_two_processes_equal_one_on_as_many_devices_to_the_last_bit(run, run_here, folder):
    """The teacher on random crops, then the student on its kept views: each process reads its half of every batch."""
    given, two, one = ["--config.teacher.cache=views:2"], folder / "two", folder / "one"
    first, second = run(two.name, 2, ONE_EACH, *given, f"--config.teacher.cache_dir={two}-kept")
    assert (first.status, second.status) == (0, 0), (first.err, second.err)
    assert (second.out, second.err) == ("", "")
    result = run_here(one.name, *given, f"--config.teacher.cache_dir={one}-kept")
    assert result.status == 0, result.err
    assert left_by(two) == left_by(one)
    files = [sorted(folder.glob(f"{path.name}-kept/views-*/part-*")) for path in (two, one)]
    assert "5 of 5 parts are missing" in first.err
    assert "part 2 of 3 of the kept views is written" in first.err  # the second process computed the other two
    assert "part 4 of 5 of the kept views is written" in result.err
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert len(files[0]) == 5
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
