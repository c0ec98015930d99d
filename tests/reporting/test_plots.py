import errno
import math
import os

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gkd_jax.errors import UserError
from gkd_jax.reporting import plots
from gkd_jax.reporting.figure import PALETTE, colours

_T = np.linspace(0, 1, 200)
_STAGE = (0.3 - math.log((3 + math.sqrt(5)) / 2) / 10, 0.3 + math.log((3 + math.sqrt(5)) / 2) / 10)


def _gompertz(scale=1.0, inflection=0.3):
    return scale * np.exp(-np.exp(-10 * (_T - inflection)))


def _records(epochs, weight=0.5, val=None, value=0.4):
    terms = {"ce": {"value": 1.1, "weight": 1.0}, "kd": {"value": value, "weight": weight, "stage": "growth"}}
    return [
        {"epoch": e, "step": e, "loss": 1.2 / e, "terms": terms, "train_accuracy": 0.5 + e / 100, "val_accuracy": val}
        for e in range(1, epochs + 1)
    ]


def _pixels(path, size):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == size
        return np.asarray(image.convert("RGB"))


def _has(pixels, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels.astype(int) - rgb).max(-1) <= 3).sum() > 20


def test_schedule(tmp_path):
    path = tmp_path / "plots" / "schedule.png"
    weights = {"ce": np.ones_like(_T), "kd": _gompertz(), "wasserstein": _gompertz(), "gradient": _gompertz(0.5)}
    lines = ("kd", "wasserstein", "gradient")
    plots.plot_schedule(
        path,
        _T,
        weights,
        np.where(_T < 0.6, 0.05, 0.0005),
        dict.fromkeys(lines, _STAGE),
        dict.fromkeys(lines, 0.3),
        240,
    )
    pixels = _pixels(path, (1152, 720))
    for colour in colours(weights).values():
        assert _has(pixels, colour)  # equal curves too


def test_schedule_with_stages_of_their_own(tmp_path):
    path = tmp_path / "schedule.png"
    weights = {"kd": _gompertz(), "dkd": _gompertz(), "wasserstein": _gompertz(2.0, 0.5)}
    stages = {"kd": _STAGE, "dkd": _STAGE, "wasserstein": (-0.1, 1.2)}  # beyond the run
    plots.plot_schedule(path, _T, weights, 0.1 * (1 - _T), stages, {"kd": 0.3, "wasserstein": 2.0}, 10)
    with Image.open(path) as image:
        assert image.width == 1152
        assert image.height > 720


def test_schedule_of_constants_and_zeros(tmp_path):
    path = tmp_path / "schedule.png"
    plots.plot_schedule(path, _T, {"ce": np.ones_like(_T), "kd": np.zeros_like(_T)}, np.zeros_like(_T))
    assert _pixels(path, (1152, 720)).std() > 1
    plots.plot_schedule(path, [0.0, 1.0], {"kd": [0.0, 0.0]}, [0.1, 0.1])
    assert _pixels(path, (1152, 720)).std() > 1
    plots.plot_schedule(path, [0.0, 1.0], {}, [0.1, 0.1])
    assert _pixels(path, (1152, 720)).std() > 1


@pytest.mark.parametrize(
    "records",
    [
        _records(1),
        _records(30),
        _records(30, weight=0.0),
        _records(3, value=None),
        _records(3, value=-0.5),
        _records(3, value=-1e-6),
        _records(3, value=math.nan),
        [],
        [{"epoch": 1}],
    ],
    ids=["one", "thirty", "zero weights", "null", "negative", "a little negative", "nan", "none", "bare"],
)
def test_losses(tmp_path, records):
    path = tmp_path / "losses.png"
    plots.plot_losses(path, records)
    pixels = _pixels(path, (1440, 662))
    assert pixels.std() > 1
    if records and "terms" in records[0]:
        assert _has(pixels, colours(["ce"])["ce"])


@pytest.mark.parametrize("records", [_records(1), _records(30), _records(30, val=0.6), [], [{"epoch": 1}]])
@pytest.mark.parametrize("others", [None, {"teacher": 0.95, "student alone": 0.6}, {"student alone": _records(20)}])
def test_accuracies(tmp_path, records, others):
    path = tmp_path / "accuracies.png"
    plots.plot_accuracies(path, records, others)
    pixels = _pixels(path, (1152, 662))
    assert pixels.std() > 1
    assert _has(pixels, PALETTE[0]) == bool(records and "loss" in records[0])
    assert _has(pixels, PALETTE[4]) == bool(others)


def test_a_lone_validation_between_others_is_seen(tmp_path):
    records = _records(30)
    records[10]["val_accuracy"] = 0.6
    records[20]["val_accuracy"] = math.nan
    plots.plot_accuracies(tmp_path / "accuracies.png", records)
    assert _has(_pixels(tmp_path / "accuracies.png", (1152, 662)), PALETTE[0])


def test_a_term_has_one_colour_in_every_run():
    assert len(set(colours(["ce", "kd", "wasserstein", "gradient", "dkd", "crd", "sp", "at"]).values())) == 8
    assert colours(["kd"])["kd"] == colours(["wasserstein", "kd", "ce"])["kd"]
    assert colours(["dkd"])["dkd"] == colours(["dkd", "kd"])["dkd"]
    assert len(colours([f"term{i}" for i in range(20)])) == 20


def test_settings_of_the_caller_are_neither_used_nor_changed(tmp_path):
    plots.plot_losses(tmp_path / "a.png", _records(5))
    with matplotlib.rc_context({"figure.facecolor": "red", "savefig.dpi": 50, "savefig.bbox": "tight"}):
        plots.plot_losses(tmp_path / "b.png", _records(5))
        assert matplotlib.rcParams["figure.facecolor"] == "red"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "losses.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*losses\.png: No space left on device"):
        plots.plot_losses(path, _records(2))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["losses.png"]


def test_several_seeds_have_a_band_of_their_deviation(tmp_path):
    """A little less than a fifth of the colour, over two deviations of 4 % in a picture of 40 %."""
    path = tmp_path / "accuracies.png"
    records = [{**record, "val_accuracy": 0.6 + 0.01 * record["epoch"]} for record in _records(30)]

    def shaded(deviations):
        several = [{**record, "std": {"val_accuracy": d}} for record, d in zip(records, deviations, strict=True)]
        plots.plot_accuracies(path, several, {"student alone": records})
        pixels = _pixels(path, (1152, 662)).astype(int)
        rgb = [int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)]
        band = 255 - 0.18 * (255 - np.array(rgb))
        return (np.abs(pixels - band).max(-1) <= 3).sum()

    assert shaded([0.04] * 30) > 30_000
    assert 10_000 < shaded([None] * 10 + [0.04] * 20) < shaded([0.04] * 30)
    assert shaded([None] * 30) < 100
    assert shaded([math.nan] * 30) < 100
