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
# # Your own network and data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/gkd_jax/blob/main/experiments/notebooks/your_own_network_and_data.ipynb)
#
# Executed on: two cores of an Intel Xeon (CPU), Python 3.11, 2026-11-23: jax 0.10.2 with the settings below;
# jax 0.10.2 and jax 0.7.2 with the small settings of `GKD_SMOKE=1`. **Never yet on a TPU, nor in Colab**:
# tested is that its training step lowers for a TPU.
#
# A network is one registered function, a data set one `.npz` file. From there on everything works as for the built-in
# ones: the teacher, the student alone, the student distilled, several seeds at once, the file for the device.

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
IMAGES = ""  # @param {type:"string"}
TEACHER = "resnet20"  # @param {type:"string"}
EPOCHS = 20  # @param {type:"integer"}
TEACHER_EPOCHS = 12  # @param {type:"integer"}
SEEDS = "0,1,2,3"  # @param {type:"string"}

if os.environ.get("GKD_SMOKE") == "1":  # small enough for a test
    TEACHER, EPOCHS, TEACHER_EPOCHS, SEEDS = "resnet8", 3, 2, "0,1"

# %% [markdown]
# ## The images
#
# `IMAGES` is the path of an `.npz` file with four arrays, and class names if you have them:
#
# | array | |
# |---|---|
# | `x_train`, `x_test` | uint8, [n, height, width, channels], all of one size |
# | `y_train`, `y_test` | integers from 0, [n] |
# | `class_names` | text, one for each class |
#
# Without a path the next cell writes such a file: scikit-learn's handwritten digits, a fifth of them for the test.

# %%
import numpy as np

if not IMAGES:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images[..., None] * 255 / 16).astype(np.uint8), digits.target
    test = np.random.default_rng(0).permutation(len(x)) < len(x) // 5
    names = [f"a {digit}" for digit in range(10)]
    RUNS.mkdir(parents=True, exist_ok=True)
    IMAGES = str(RUNS / "digits.npz")
    np.savez(IMAGES, x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test], class_names=names)

with np.load(IMAGES) as file:
    print({name: (file[name].shape, str(file[name].dtype)) for name in file})

# %% [markdown]
# ## The network
#
# A linen module that returns `Outputs`; `Taps` records what other losses may ask for, the output of each stage, and
# `ConvNorm` is a convolution with its BatchNorm, in the form that is fast on the device at hand. The function below it
# gives the network its name. Both stand in the configuration file, which every process of a run reads.

# %%
# %%writefile mine.py
"""A network and a data set of one's own: mine.py:IMAGES.npz."""

import flax.linen as nn

from gkd_jax import config, models, objective


class TwoStages(nn.Module):
    num_classes: int
    compute: models.Compute

    @nn.compact
    def __call__(self, images, *, train, probes):
        taps = models.Taps(probes)
        x = images
        for stage, width in enumerate((8, 16)):
            preact = models.ConvNorm(width, stride=2, compute=self.compute, name=f"stage{stage}")(x, train=train)
            x = taps(nn.relu(preact), preact)
        return models.classify(x, taps, self.num_classes)


@models.register("two_stages")
def two_stages(num_classes, dtype, conv):
    return TwoStages(num_classes, models.Compute(dtype, conv))


def get_config(images):
    c = config.default()
    c.data.source = f"npz:{images}"
    c.data.val_fraction = 0.1
    c.data.pad, c.data.flip = 1, False  # crops after a border of one pixel; flip=True if a mirror image is as good
    c.tensorboard = False
    c.student.model = "two_stages"
    c.compare_alone = True
    rise = config.schedule("gompertz", inflection=0.3, rate=10.0)
    c.objective.terms.kd = objective.block("kd", weight=1.0, temperature=4.0, schedule=rise)
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="features", schedule=rise)
    return c


# %% tags=["settings"]
CONFIG = f"mine.py:{IMAGES}"
WORKDIR = RUNS / f"mine-{TEACHER}-{EPOCHS}ep"
FLAGS = [
    f"--config.teacher.model={TEACHER}",
    f"--config.epochs={EPOCHS}",
    f"--config.teacher.epochs={TEACHER_EPOCHS}",
    f"--config.seeds=({SEEDS},)",
]

# %% [markdown]
# Before anything is trained: is it the network that you meant? A mistake in the file, the arrays or a flag is one
# sentence here too.

# %%
from gkd_jax import notebook

print(notebook.find_device())
notebook.command("--config", CONFIG, *FLAGS, "--mode=shapes")

# %% [markdown]
# ## Distilled and alone
#
# The teacher; then, for each seed, the student alone and the student distilled. All seeds are trained in one program,
# and each is what it would be by itself.

# %%
summary = notebook.train(CONFIG, WORKDIR, *FLAGS)

# %% [markdown]
# The two students of a seed share their initial weights, the order of the images and their crops, so it is their
# difference that counts. If its interval holds zero, this was too little to tell them apart.

# %%
notebook.paired(summary)

# %% [markdown]
# ## Use it
#
# A network of your own must be registered before it is loaded: run its file first.

# %%
# %run mine.py
import gkd_jax

student = gkd_jax.load(WORKDIR)
with np.load(IMAGES) as file:
    probabilities = student.predict(file["x_test"][:5])
    print([student.class_names[row.argmax()] for row in probabilities], "are:", file["y_test"][:5])

# %% [markdown]
# ## Take it to the device
#
# `--mode=export` writes the student with its preprocessing inside (uint8 images in), loads every file again by its own
# runtime, and says done only if that gives the same answers on the test images. Of several seeds it takes the first;
# `--export_seed` names another. ONNX and LiteRT are formats too, and need the extras `export` and `export-litert`. The
# folder's `README.md` says how each file is loaded.

# %% tags=["export"]
run = ["--config", CONFIG, "--workdir", WORKDIR, *FLAGS]
notebook.command(*run, "--mode=export", "--format=stablehlo,safetensors")
