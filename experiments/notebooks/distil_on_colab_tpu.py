# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     provenance: []
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator,colab,-jupytext.text_representation.jupytext_version
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
# # Distil on a Colab TPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/gkd_jax/blob/main/experiments/notebooks/distil_on_colab_tpu.ipynb)
#
# Executed on: two cores of an Intel Xeon (CPU), Python 3.11, 2026-11-23:
# jax 0.10.2 and jax 0.7.2 with the small settings of `GKD_SMOKE=1`;
# jax 0.10.2 also with resnet20, resnet8, 2,000 images of CIFAR-10 and two epochs. **Never yet on a TPU, nor in Colab**:
# tested is that its training step lowers for a TPU, and that eight CPU devices give what one gives.
#
# A teacher is trained, or loaded; then a student learns from it by the full Gompertz-CNN objective: the teacher's
# softened answers, the Wasserstein distance of embeddings, and the gradients in the image, each under a weight that
# follows a Gompertz curve over the run. Pictures grow while it trains, checkpoints lie on Drive, and after the runtime
# was taken away the same cells go on where the run was.

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

# %% [markdown]
# ## The device
#
# One process at a time can hold a TPU. So each run below is a process of its own, which takes the device and gives it
# back, and this notebook itself stays on the CPU.

# %%
from gkd_jax import notebook

print(notebook.find_device())

# %% [markdown]
# ## Settings
#
# The recipe of the published tables is 240 epochs; all that depends on time (the learning rate, the Gompertz curve) is
# given as a share of the run, and shrinks with it. `TEACHER_RUN` names the folder of a finished run, to load that
# teacher instead of training one. With `COMPARE_ALONE` the student is also trained without a teacher, since only the
# difference says what distillation brought.

# %% tags=["parameters"]
# @title Settings
TEACHER = "resnet56"  # @param {type:"string"}
STUDENT = "resnet20"  # @param {type:"string"}
DATASET = "cifar10"  # @param ["cifar10", "cifar100"]
METHOD = "gompertz_cnn"  # @param {type:"string"}
EPOCHS = 30  # @param {type:"integer"}
TEACHER_EPOCHS = 30  # @param {type:"integer"}
TEACHER_RUN = ""  # @param {type:"string"}
COMPARE_ALONE = True  # @param {type:"boolean"}
VIEWS = {"pad": 4, "flip": "true"}  # crops and mirror images

if os.environ.get("GKD_SMOKE") == "1":  # small enough for a test, without the network
    TEACHER, STUDENT, DATASET = "resnet8", "resnet8_eighth", "digits"
    EPOCHS, TEACHER_EPOCHS, COMPARE_ALONE = 3, 2, False
    VIEWS = {"pad": 1, "flip": "false"}  # a mirrored digit is another sign

# %% tags=["settings"]
CONFIG = f"pair.py:{TEACHER},{STUDENT},{DATASET},{METHOD}"
WORKDIR = RUNS / f"{TEACHER}-{STUDENT}-{DATASET}-{METHOD}-{EPOCHS}ep"
DATA_DIR = RUNS / "tensorflow_datasets"
FLAGS = [
    f"--config.epochs={EPOCHS}",
    f"--config.teacher.epochs={TEACHER_EPOCHS}",
    f"--config.compare_alone={str(COMPARE_ALONE).lower()}",
    f"--config.data.data_dir={DATA_DIR}",
    f"--config.data.pad={VIEWS['pad']}",
    f"--config.data.flip={VIEWS['flip']}",
    "--config.data.val_fraction=0.1",  # to watch; the test images are read once, at the end
    "--config.tensorboard=false",
]
if TEACHER_RUN:
    FLAGS.append(f"--config.teacher.checkpoint={TEACHER_RUN}")

# %% [markdown]
# A configuration is a Python file. This one takes any pair and method; every field can be changed by a flag, as above.

# %%
# %%writefile pair.py
"""A method on a pair, by the standard recipe: pair.py:TEACHER,STUDENT,DATASET,METHOD."""

from gkd_jax import recipes


def get_config(what):
    return recipes.standard(*what.split(","))


# %% [markdown]
# ## Data
#
# TFDS downloads CIFAR and writes it down as files that need no TensorFlow to be read. Writing them does need it, and a
# TPU runtime has none; it is installed for this into a folder of its own, and removed again.

# %%
notebook.prepare(DATASET, str(DATA_DIR))

# %% [markdown]
# ## Look before you train
#
# Sizes of both networks, and the weight of every loss over the run. Nothing is trained, and no image is read.

# %%
notebook.command("--config", CONFIG, *FLAGS, "--mode=shapes")

# %% [markdown]
# ## Train
#
# Interrupting this cell saves first. Run it again, in this runtime or in the next one, and it goes on: from the last
# epoch if the runtime was taken away, from the last step if you interrupted it. The end is the same as of a run that
# was never stopped, and the teacher is not trained twice. Once all is done, the cell just shows the result.
#
# Drive writes in the background. If the newest checkpoint was cut short by the end of a runtime, the message names its
# folder: remove that one, and the cell goes on from the one before, if there is one, or begins that network again.

# %%
summary = notebook.train(CONFIG, WORKDIR, *FLAGS)

# %% [markdown]
# ## What the weights did
#
# The Gompertz stages (slow growth, rapid growth, saturation) over the learning rate.

# %%
from IPython.display import Image

Image(str(WORKDIR / "plots" / "schedule.png"), width=680)

# %% [markdown]
# ## Use the student
#
# From here on, `WORKDIR` is all that is needed; `summary` has the numbers of the table above, and more.

# %%
import gkd_jax

student = gkd_jax.load(WORKDIR)
images = gkd_jax.data.load(DATASET, data_dir=str(DATA_DIR))
probabilities = student.predict(images.test_images[:8])
for row, label in zip(probabilities, images.test_labels[:8], strict=True):
    print(f"{student.class_names[row.argmax()]:>12} ({row.max():.0%}), it is: {student.class_names[label]}")
