"""What the notebooks call, without a run: the device, the sliders, tables, preparing data, the end of a process."""

import importlib
import io
import json
import os
import subprocess
import sys

import pytest

from gkd_jax import notebook
from gkd_jax.data import tfds
from gkd_jax.errors import UserError
from gkd_jax.notebook import child, curve, display, prepared, runs

pytest.importorskip("IPython")

PNG = b"\x89PNG"


@pytest.fixture
def shown(monkeypatch):
    """Returns what was displayed, in order."""
    found = []

    class Handle:
        def __init__(self, content):
            self.updates = [content]

        def update(self, content, **_):
            self.updates.append(content)

    def show(content, **_):
        found.append(Handle(content))
        return found[-1]

    monkeypatch.setattr(display.ipython(), "display", show)
    return found


# ------------------------------------------------------------------------------------------------ the device

IN_USE = "RuntimeError: Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid {}."


@pytest.mark.parametrize(
    ("colab", "status", "out", "err", "said", "unsaid"),
    [
        (True, 0, ["tpu", "TPU v5 lite", 1], "", "1 x TPU v5 lite (tpu), jax", "Change runtime"),
        (True, 0, ["tpu", "TPU v2", 8], "", "The runs below will use all of them.", "Change runtime"),
        (True, 0, ["cpu", "cpu", 1], "", "no TPU or GPU was found.\nIn Colab: Runtime > Change", "pip install"),
        (False, 0, ["cpu", "cpu", 2], "", 'Elsewhere: pip install "jax[tpu]"', "held by"),
        (True, 1, None, IN_USE.format(99), "The TPU is held by the process 99, and only one", "Change runtime"),
        (True, 1, None, IN_USE.format(os.getpid()), "held by this notebook's own process", "the process"),
        (True, 0, ["cpu", "cpu", 1], IN_USE.format(99), "Runtime > Restart session", "Change runtime"),
        (True, 1, None, "", "No device: JAX says nothing", "held by"),
    ],
)  # fmt: skip
def test_what_device_there_is_and_what_to_do(monkeypatch, colab, status, out, err, said, unsaid):
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    done = subprocess.CompletedProcess([], status, f"a warning\n{json.dumps(out)}\n", err)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    text = notebook.find_device()
    assert said in text
    assert unsaid not in text


# ------------------------------------------------------------------------------------------------ pictures and tables


def test_a_place_shows_what_is_new(shown):
    place = display.Place()
    for content in ("a", "a", "b"):
        place.show(content)
    assert [handle.updates for handle in shown] == [[{"text/plain": "a"}, {"text/plain": "b"}]]


def test_a_run_is_drawn_again_after_each_epoch(shown, tmp_path):
    def recorded(folder, epochs):
        terms = {"ce": {"value": 1.0, "weight": 1.0}}
        record = {"step": 1, "loss": 1.0, "terms": terms, "train_accuracy": 0.5, "val_accuracy": None}
        folder.mkdir(exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": e, **record}) + "\n" for e in epochs))

    pictures = runs._Pictures(tmp_path)
    pictures.update()
    assert shown == []
    recorded(tmp_path / "teacher", [1])
    pictures.update()
    assert [len(place.updates) for place in shown] == [1]  # accuracies alone: the student has no losses yet
    recorded(tmp_path, [1])
    pictures.update()
    pictures.update()  # where nothing is new nothing is drawn
    assert [len(place.updates) for place in shown] == [2, 1]
    recorded(tmp_path, [1, 2])
    pictures.update()
    assert [len(place.updates) for place in shown] == [3, 2]
    assert all(picture.data.startswith(PNG) for place in shown for picture in place.updates)


def test_a_family_of_curves_is_one_picture(shown):
    notebook.family({"default": {}, "slower": {"rate": 5.0}}, epochs=30)
    assert shown[0].updates[0].data.startswith(PNG)
    with pytest.raises(UserError, match="rate must be a finite number above 0, not 0"):
        notebook.family({"flat": {"rate": 0}})


@pytest.fixture
def workdir(tmp_path):
    """A run of three epochs with two seeds, as it is read here."""
    records = [
        {
            "epoch": epoch,
            "terms": {"kd": {"value": 1.0, "weight": 0.3 * epoch}},
            "train_accuracy": 0.2 * epoch,
            "val_accuracy": 0.1 * epoch,
            "std": {"train_accuracy": 0.01, "val_accuracy": 0.02},
        }
        for epoch in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    student = {"val_accuracy": 0.3, "test_accuracy": 0.25, "seconds": 7.0, "std": {"val_accuracy": 0.02}}
    (tmp_path / "summary.json").write_text(json.dumps({"student": student}))
    return tmp_path


def test_the_curve_is_shown_with_sliders_and_without(shown, workdir, monkeypatch, capsys):
    pytest.importorskip("ipywidgets")
    notebook.explore(workdir, inflection=0.4)
    (forms,) = shown[0].updates
    assert list(forms) == ["application/vnd.jupyter.widget-view+json", "image/png", "text/plain"]

    def missing(name):
        raise ImportError(name) if name == "ipywidgets" else AssertionError(name)

    with monkeypatch.context() as patch:
        patch.setattr(
            importlib, "import_module", lambda name: missing(name) if name == "ipywidgets" else sys.modules[name]
        )
        notebook.explore(workdir)
    assert shown[1].updates[0].data.startswith(PNG)
    assert "No sliders without ipywidgets" in capsys.readouterr().out
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="holds no run that has finished an epoch"):
        notebook.explore(workdir)


def test_a_slider_draws_anew():
    widgets = pytest.importorskip("ipywidgets")
    asked = []

    def picture(**given):
        asked.append(given)
        return display.ipython().Image(data=b"new", format="png")

    given = {"inflection": 0.3, "rate": 10.0, "peak_value": 1.0}
    box = curve.sliders(widgets, PNG, given, picture)
    *moved, image = box.children
    assert ([slider.description for slider in moved], image.value) == (list(given), PNG)
    moved[0].value = 0.5
    assert (asked, image.value) == ([{**given, "inflection": 0.5}], b"new")


def test_runs_side_by_side(shown, workdir, capsys):
    notebook.compare({"one": workdir, "another": workdir})
    assert shown[0].updates[0].data.startswith(PNG)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["one", "30.00", "±", "2.00", "25.00", "7.0"]
    with pytest.raises(UserError, match="holds no run with a term 'at'"):
        notebook.compare({"one": workdir}, term="at")


def test_what_distillation_brought_each_seed(capsys):
    def students(*accuracies):
        return {"seeds": {str(seed): {"test_accuracy": x} for seed, x in enumerate(accuracies)}}

    notebook.paired({"student_alone": students(0.50, 0.60, 0.55), "student": students(0.52, 0.61, 0.58)})
    out = capsys.readouterr().out
    # Differences 2, 1, 3: mean 2, deviation 1; t(0.975, 2) = 4.3027 (tables), over the root of 3
    assert "mean gain +2.00, 95 % interval -0.48 to +4.48" in out
    assert out.splitlines()[2].split() == ["0", "50.00", "52.00", "+2.00"]
    with pytest.raises(UserError, match="compare_alone=true and two or more seeds"):
        notebook.paired({"student_alone": None, "student": students(0.5, 0.6)})
    with pytest.raises(UserError, match="two or more seeds"):
        notebook.paired({"student_alone": {"test_accuracy": 0.5}, "student": {"test_accuracy": 0.5}})


# ------------------------------------------------------------------------------------------------ data


@pytest.fixture
def commands(monkeypatch):
    """Returns the commands that were given; their outcome is taken from `outcomes`."""
    given, outcomes = [], []

    def run(arguments, **options):
        given.append((arguments, options["env"].get("PYTHONPATH")))
        status, err = outcomes.pop(0) if outcomes else (0, "")
        return subprocess.CompletedProcess(arguments, status, "", err)

    monkeypatch.setattr(subprocess, "run", run)
    return given, outcomes


@pytest.mark.parametrize("source", ["digits", "npz:mine.npz", "my_data"])
def test_what_needs_no_preparing_is_left_alone(commands, tmp_path, source):
    notebook.prepare(source, str(tmp_path))
    assert commands == ([], [])


def test_a_set_that_is_there_is_left_alone(commands, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tfds, "shapes", lambda name, data_dir: ((32, 32, 3), 10, 50_000, 10_000))
    notebook.prepare("cifar10", str(tmp_path))
    assert commands == ([], [])
    assert f"cifar10 is prepared in {tmp_path}" in capsys.readouterr().out


def test_tensorflow_is_met_by_the_preparing_process_alone(commands, tmp_path):
    notebook.prepare("tfds:cifar10", str(tmp_path))
    (pip, _), (script, path) = commands[0]
    folder = pip[pip.index("--target") + 1]
    assert pip[1:4] == ["-m", "pip", "install"]
    assert set(prepared.PACKAGES) <= set(pip)
    assert (script[-2:], path) == (["cifar10", str(tmp_path)], folder)
    assert not os.path.exists(folder)


def test_what_fails_is_said(commands, tmp_path):
    commands[1].append((1, "noise\nERROR: no space left"))
    with pytest.raises(UserError, match="^pip failed: ERROR: no space left$"):
        notebook.prepare("cifar10", str(tmp_path))
    commands[1].extend([(0, ""), (1, "")])
    with pytest.raises(UserError, match="^TFDS failed: status 1$"):
        notebook.prepare("cifar100", str(tmp_path))


# ------------------------------------------------------------------------------------------------ processes


def test_a_command_prints_what_it_prints(capsys):
    notebook.command("--help")
    assert "python -m gkd_jax.main --config" in capsys.readouterr().out


def test_a_mistake_is_one_sentence():
    with pytest.raises(UserError, match=r"^--config: no such file: nowhere.py$"):
        notebook.command("--config", "nowhere.py")


def test_a_process_ends_with_its_parent(monkeypatch):
    killed = io.StringIO()
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.write(f"{pid} {int(number)}"))
    watching = child.end_with(os.getppid() + 1, interval=0.0)
    watching.join(timeout=10)
    assert not watching.is_alive()
    assert killed.getvalue() == f"{os.getpid()} 15"
