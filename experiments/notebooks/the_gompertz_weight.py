# ---
# jupyter:
#   colab:
#     provenance: []
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: colab,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The Gompertz weight
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/gkd_jax/blob/main/experiments/notebooks/the_gompertz_weight.ipynb)
#
# Executed on: two cores of an Intel Xeon (CPU), Python 3.11, 2026-11-23: jax 0.10.2 with the settings below;
# jax 0.10.2 and jax 0.7.2 with the small settings of `GKD_SMOKE=1`. **Never yet on a TPU, nor in Colab.**
#
# The idea: a student that knows nothing yet has little use for a teacher's finer opinions. So the weight of the
# distillation loss grows over the run, slowly at first, then fast, then hardly any more, with $t$ the fraction of the
# run that is done:
#
# $$G(t) = A\,e^{-e^{-c\,(t - t^*)}}$$
#
# $A$ is the height that it approaches, $c$ the rate, and $t^*$ the inflection, where it is $A/e$ and steepest. Its
# stages end where it accelerates and decelerates most, at $t^* \mp \ln\frac{3 + \sqrt 5}{2} / c$.
#
# Whether that suits a student is to be measured. This notebook does so on handwritten digits of 8 x 8 pixels, which
# come with scikit-learn; a CPU is enough.

# %% [markdown]
# ## Where everything is
#
# In Colab the next cell installs gkd_jax beside the runtime's own JAX: what pip may not touch stands in `kept.txt`.
# Runs are kept in a folder on Drive, so that they outlive the runtime. Elsewhere it installs nothing, and runs are
# kept in `runs`, or where `GKD_RUNS` says.

# %% tags=["install"]
# @title Package and folder
SOURCE = "git+https://github.com/OWNER/gkd_jax"  # @param {type:"string"}
# A git address; or a folder or wheel on Drive, such as /content/drive/MyDrive/gkd_jax
FOLDER = "/content/drive/MyDrive/gkd_jax_runs"  # @param {type:"string"}

import importlib.metadata
import os
import pathlib
import subprocess
import sys

if "google.colab" in sys.modules:
    if "OWNER" in SOURCE:
        raise ValueError(
            "SOURCE: gkd_jax has no public address yet. Put the git address of your copy into the "
            "field SOURCE, or copy its folder to Drive and put /content/drive/MyDrive/gkd_jax there; "
            "then run this cell again."
        )
    if any(place.startswith("/content/drive/") for place in (SOURCE, FOLDER)):
        from google.colab import drive

        drive.mount("/content/drive")
    kept = ("jax", "libtpu", "flax", "orbax", "numpy", "protobuf")
    installed = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    constraints = [f"{name}=={version}" for name, version in installed.items() if name.startswith(kept)]
    pathlib.Path("kept.txt").write_text("\n".join(constraints))
    wanted = [SOURCE, "flatbuffers"]  # by which StableHLO is exported
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "kept.txt", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    done.check_returncode()
    RUNS = pathlib.Path(FOLDER)
else:
    RUNS = pathlib.Path(os.environ.get("GKD_RUNS", "runs"))

# %% tags=["parameters"]
# @title Settings
TEACHER = "resnet20"  # @param {type:"string"}
EPOCHS = 10  # @param {type:"integer"}
SEEDS = "0,1,2"  # @param {type:"string"}
SCHEDULES = "gompertz,gompertz_adaptive,constant,logistic,linear,cosine,step,rise_then_decay"  # @param {type:"string"}

if os.environ.get("GKD_SMOKE") == "1":  # small enough for a test
    TEACHER, EPOCHS, SEEDS, SCHEDULES = "resnet8", 3, "0", "gompertz,gompertz_adaptive,constant"

# %% [markdown]
# ## The curve
#
# Three curves that differ in one parameter each from the default ($t^* = 0.3$, $c = 10$), with their stages, over the
# learning rate of the standard recipe. That falls at 62.5 %, 75 % and 87.5 % of the run: a weight that rises after the
# first drop meets a student that moves ten times more slowly.

# %%
from gkd_jax import notebook

notebook.family({"default": {}, "later": {"inflection": 0.5}, "slower": {"rate": 5.0}})

# %% [markdown]
# ## A student to measure
#
# The smallest network there is (1,384 parameters). Its objective is cross-entropy and the teacher's softened answers
# (`kd`), whose weight is the only thing that will differ from run to run. The teacher is trained once, and what it
# says of the views of an image is kept, for all runs.

# %%
print(notebook.find_device())

# %%
# %%writefile digits_by.py
"""On digits, a small student by a schedule, digits_by.py:schedule=NAME, or its teacher, digits_by.py:teacher=NAME."""

from gkd_jax import config, objective


def get_config(what):
    c = config.default()
    c.data.source, c.data.val_fraction = "digits", 0.2
    c.data.pad, c.data.flip = 1, False  # a mirrored digit is another sign
    c.tensorboard = False
    role, _, name = what.partition("=")
    if role == "teacher":
        c.teacher.model, c.student.model = config.NO_TEACHER, name
        return c
    c.student.model = "resnet8_eighth"
    c.teacher.cache = "logits"
    c.objective.terms.kd = objective.block("kd", weight=1.0, temperature=4.0, schedule=config.schedule(name))
    return c


# %%
BASE = RUNS / f"gompertz-{TEACHER}-{EPOCHS}ep"
summary = notebook.train(f"digits_by.py:teacher={TEACHER}", BASE / "teacher", f"--config.epochs={EPOCHS}")

# %% tags=["settings"]
NAMES = SCHEDULES.split(",")
WORKDIRS = {name: BASE / name for name in NAMES}
FLAGS = [
    f"--config.epochs={EPOCHS}",
    f"--config.seeds=({SEEDS},)",  # a student for each, in one program
    f"--config.teacher.model={TEACHER}",
    f"--config.teacher.checkpoint={BASE / 'teacher'}",
    f"--config.teacher.cache_dir={BASE / 'cache'}",
    f"--config.compilation_cache={BASE / 'compiled'}",  # what all runs have in common is compiled once
]

# %%
summary = notebook.train(f"digits_by.py:schedule={NAMES[0]}", WORKDIRS[NAMES[0]], *FLAGS)

# %% [markdown]
# ## Moved by hand
#
# Above, the curve and its stages. Below, how accurate the student was, the mean over the seeds; that was measured under
# the default, and stays as it is when you move the sliders. In which stage should the weight have been when the student
# learnt fastest? To try your values, add them to `FLAGS`:
# `--config.objective.terms.kd.schedule.inflection=0.2`, `--config.objective.terms.kd.schedule.rate=6.0`.
#
# On a page without a running notebook there are no sliders, and the picture shows the default.

# %%
notebook.explore(WORKDIRS[NAMES[0]], inflection=0.3, rate=10.0, peak_value=1.0)

# %% [markdown]
# ## Fixed, adaptive, and their rivals
#
# The same student, teacher, seeds and images; only the schedule differs. `gompertz` is fixed in advance.
# `gompertz_adaptive` is fitted to the student's accuracy on the training images after each epoch; it never falls, and
# rises at most twice as steeply as the curve that it began with. The others are there from the start (`constant`), grow
# symmetrically (`logistic`), straight or along a cosine over the whole run, at once (`step`), or rise and fall again.

# %%
from IPython.display import clear_output

for name in NAMES[1:]:
    clear_output(wait=True)  # one run at a time is enough to look at
    summary = notebook.train(f"digits_by.py:schedule={name}", WORKDIRS[name], *FLAGS)

# %% [markdown]
# Mean, and standard deviation over the seeds. A schedule is chosen by the validation images; the test images check the
# choice. Differences smaller than the spread decide nothing, and a few hundred digits say little of other networks and
# data: this is how to ask, on your own.

# %%
notebook.compare(WORKDIRS)
