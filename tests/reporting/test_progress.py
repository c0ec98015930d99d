import io
import re

import pytest

from gkd_jax.reporting import Progress


class _Clock:
    def __init__(self):
        self.now = 1000.0
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.now


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _record(epoch, **more):
    return {
        "epoch": epoch,
        "loss": 1.25,
        "train_accuracy": 0.7,
        "val_accuracy": 0.685,
        "images_per_second": 12345.6,
        "terms": {"ce": {}, "kd": {"stage": "growth"}, "wasserstein": {"stage": "growth"}},
        **more,
    }


def _screen(text):
    """Returns the lines that a terminal without escape codes shows."""
    lines = []
    for line in text.split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def _run(stream, epochs, clock, progress=None, first=1, compilation=100.0):
    """Ten steps of a second an epoch and five seconds of evaluation, the first step after its compilation."""
    progress = progress or Progress(epochs[-1], 10, "student", stream, clock=clock)
    for epoch in epochs:
        for step in range(10):
            clock.now += compilation if (epoch, step) == (first, 0) else 1.0
            progress.step()
        clock.now += 5.0
        progress.epoch(_record(epoch))
    return progress


def test_a_log_gets_one_plain_line_an_epoch():
    stream, clock = io.StringIO(), _Clock()
    _run(stream, range(1, 13), clock)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[1] == (
        "student  epoch  2/12  loss   1.2500  train  70.00%  val  68.50%    12,346 img/s  ETA  0:02:30  growth"
    )
    assert "\r" not in stream.getvalue()
    assert len({line.index("ETA") for line in lines[:-1]}) == 1
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[-1].endswith("in   0:04:39  growth")  # 100 + 9 + 11 * 10 + 12 * 5


def test_the_remaining_time_leaves_out_the_compiled_step():
    stream, clock = io.StringIO(), _Clock()
    _run(stream, range(1, 5), clock)
    etas = re.findall(r"ETA +(\S+)", stream.getvalue())
    # After the first epoch: nine steps and an evaluation took 14 s, thirty steps remain. Then 15 s an epoch.
    assert etas == ["0:00:47", "0:00:30", "0:00:15"]


def test_a_resumed_run_counts_its_own_time():
    stream, clock = io.StringIO(), _Clock()
    progress = Progress(104, 10, "student", stream, clock=clock, done_epochs=100)
    _run(stream, range(101, 105), clock, progress, first=101)
    assert re.findall(r"ETA +(\S+)", stream.getvalue()) == ["0:00:47", "0:00:30", "0:00:15"]
    assert "epoch 101/104" in stream.getvalue()


def test_epochs_of_a_single_chunk_have_an_estimate_from_the_second_on():
    stream, clock = io.StringIO(), _Clock()
    progress = Progress(4, 10, "student", stream, clock=clock)
    for epoch in range(1, 5):
        clock.now += 60.0 if epoch == 1 else 0.1  # dispatched at once, done later
        progress.step(10)
        clock.now += 20.0
        progress.epoch(_record(epoch))
    assert re.findall(r"ETA +(\S+)", stream.getvalue()) == ["-", "0:00:40", "0:00:20"]


def test_a_terminal_shows_one_line_that_updates_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream, clock = _Terminal(), _Clock()
    with Progress(4, 10, "student", stream, clock=clock) as progress:
        progress.step()
        assert stream.getvalue() == ""
        clock.now += 10.0
        progress.step(5)
        assert _screen(stream.getvalue()) == ["student  epoch 1/4  15%  ETA 0:01:08"]  # 34 steps of two seconds
        clock.now += 2.0
        progress.epoch(_record(1))
        shown = _screen(stream.getvalue())
        assert len(shown) == 2
        assert shown[0].startswith("student  epoch 1/4  loss   1.2500")
        assert shown[1] == ""
        clock.now += 10.0
        progress.step(6)
        clock.now += 2.0
        progress.epoch(_record(2, val_accuracy=None))
        clock.now += 3.0
        progress.step(6)
        shown = _screen(stream.getvalue())
        assert "val       -" in shown[1]
        # 24 s at the end of epoch 2, three of which are over, however far ahead the dispatch is
        assert re.sub(" +", " ", shown[2]) == (
            "student epoch 3/4 65% loss 1.2500 train 70.00% val - 12,346 img/s ETA 0:00:21"
        )
    assert _screen(stream.getvalue())[2] == ""
    assert "\x1b" not in stream.getvalue()


def test_several_seeds_have_their_deviation():
    stream, clock = io.StringIO(), _Clock()
    progress = Progress(2, 10, "student", stream, clock=clock)
    progress.epoch(_record(1, std={"val_accuracy": 0.0123, "loss": 0.1}))
    progress.epoch(_record(2, val_accuracy=None, std={"loss": 0.1}))
    first, second = stream.getvalue().splitlines()
    assert "val  68.50% ± 1.23%  " in first
    assert "±" not in second


def test_a_line_does_not_wrap_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream, clock = _Terminal(), _Clock()
    progress = Progress(4, 10, "student", stream, clock=clock)
    for _ in range(3):
        clock.now += 1.0
        progress.step()
    assert max(map(len, stream.getvalue().split("\r"))) == 19


def test_steps_between_refreshes_write_nothing():
    stream, clock = _Terminal(), _Clock()
    progress = Progress(1, 1000, "student", stream, clock=clock)
    for _ in range(1000):
        clock.now += 0.01
        progress.step()
    assert stream.getvalue().count("\r") <= 21


def test_steps_without_a_terminal_do_not_even_read_the_clock():
    clock = _Clock()
    progress = Progress(1, 1000, "student", io.StringIO(), clock=clock)
    for _ in range(1000):
        progress.step()
    assert clock.calls == 2


def test_a_bare_record_and_standard_error(capsys):
    progress = Progress(2, 10, "teacher", clock=_Clock())
    progress.epoch({"epoch": 1, "loss": float("nan"), "terms": {"kd": {"stage": "rapid"}, "w": {"stage": "growth"}}})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.sub(" +", " ", captured.err) == ("teacher epoch 1/2 loss nan train - val - - img/s ETA - rapid/growth\n")


@pytest.mark.parametrize(("seconds", "shown"), [(59.6, "0:01:00"), (3600.0, "1:00:00"), (110000.0, "30:33:20")])
def test_long_runs_are_counted_in_hours(seconds, shown):
    stream, clock = io.StringIO(), _Clock()
    progress = Progress(1, 10, "student", stream, clock=clock)
    clock.now += seconds
    progress.epoch(_record(1))
    assert shown in stream.getvalue()
