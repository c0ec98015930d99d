"""The model card beside the files of an export: what the network is, how good it is, how to load it."""

from collections.abc import Iterator, Mapping
from typing import Any

from gkd_jax import config, export
from gkd_jax.export import files, table
from gkd_jax.export.student import Student
from gkd_jax.training.imported import RECORD as IMPORTED

# By kind: a heading, what to install, what to know, and five lines that turn `images`, uint8 [n, h, w, c], into names
_LOADING: Mapping[str, tuple[str, str, str, str]] = {
    "stablehlo": (
        "StableHLO",
        "`pip install jax flatbuffers`",
        "For any number of images, on CPU, CUDA and TPU. JAX reads such a file for six months after the version that "
        "wrote it.",
        """\
import json
from jax import export
network = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
logits = network.call(images)
names = [json.load(open("classes.json"))[i] for i in logits.argmax(-1)]""",
    ),
    "safetensors": (
        "safetensors",
        "`pip install .` in a checkout of gkd_jax",
        "Weights, in the names of gkd_jax. The constants of normalisation and the names of the classes are metadata of "
        "the file, and `logits` heeds them.",
        """\
from gkd_jax.interop import weights
network = weights.load("weights.safetensors")
logits = network.logits(images)
names = [network.class_names[i] for i in logits.argmax(-1)]""",
    ),
    files.TORCH: (
        "safetensors for PyTorch",
        "`pip install torch safetensors`",
        "Weights alone, in PyTorch's names and layout, for `network`, the module of this name in RepDistiller, "
        "mdistiller or torchvision.",
        """\
import json, torch; from safetensors.torch import load_file
network.load_state_dict(load_file("weights.torch.safetensors"))
mean, std = torch.tensor(MEAN), torch.tensor(STD)
logits = network.eval()(((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2))
names = [json.load(open("classes.json"))[i] for i in logits.argmax(-1)]""",
    ),
    "onnx": (
        "ONNX",
        "`pip install onnxruntime`",
        "For any number of images. The class names are in the file's metadata.",
        """\
import json, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {"images": images})
classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
names = [classes[i] for i in logits.argmax(-1)]""",
    ),
    "litert": (
        "LiteRT",
        "`pip install ai-edge-litert`",
        "One image at a time. The class names are `labels.txt` in the archive at the end of the file.",
        """\
import zipfile; from ai_edge_litert.interpreter import Interpreter
run = Interpreter("model.tflite").get_signature_runner()
logits = [run(images=images[i : i + 1])["logits"][0] for i in range(len(images))]
classes = zipfile.ZipFile("model.tflite").read("labels.txt").decode().splitlines()
names = [classes[values.argmax()] for values in logits]""",
    ),
}

_QUALITY = {
    "test_accuracy": "accuracy",
    "test_top5": "top-5 accuracy",
    "test_ece": "calibration error",
    "test_nll": "negative log-likelihood",
}


def text(student: Student, record: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns the model card, in Markdown.

    Args:
      student: that was exported.
      record: the content of `export.json`.
      summary: of its run; empty if there is none.
    """
    parts = [*_head(student, record), *_data(student), *_recipe(student), *_measured(student, record, summary)]
    return "\n\n".join([*parts, *_loading(record)]) + "\n"


def _head(student: Student, record: Mapping[str, Any]) -> Iterator[str]:
    taught = student.finished.config["teacher"]["model"]
    how = "" if taught == config.NO_TEACHER else f", distilled from {taught}"
    height, width, channels = record["image_shape"]
    yield f"# {record['model']} for {record['data']}"
    yield (
        f"An image classifier of {len(student.served.class_names)} classes{how}, made by "
        f"gkd_jax {record['versions']['gkd_jax']}."
    )
    yield (
        f"It takes `images`, uint8 [n, {height}, {width}, {channels}] (height, width, channels; 0 to 255), and gives "
        f"`logits`, float32 [n, {len(student.served.class_names)}]. Normalisation is inside every file but those of "
        f"weights alone. `{export.CLASSES}` has the names of the classes, in the order of the logits."
    )


def _data(student: Student) -> Iterator[str]:
    sizes, held = student.dataset.sizes, student.finished.record
    yield "## Data"
    yield (
        f"{held['source']}: {sizes.train:,} training, {sizes.val:,} validation, {sizes.test:,} test images; SHA-256 "
        f"of all `{held['digest']}`. Pixels are divided by 255, then normalised by mean "
        f"{_numbers(student.served.mean)} and deviation {_numbers(student.served.std)}."
    )
    if IMPORTED in held:
        origin = held[IMPORTED]
        yield f"The weights were imported from `{origin['file']}` (SHA-256 `{origin['sha256']}`), trained elsewhere."


def _recipe(student: Student) -> Iterator[str]:
    given = student.finished.config
    yield "## Recipe"
    if IMPORTED in student.finished.record:
        yield "Unknown: the weights were trained elsewhere."
        return
    optimizer, terms = given["optimizer"], given["objective"]["terms"]
    averaged = f", averaged with a decay of {given['ema']:g}" if given["ema"] else ""
    yield (
        f"{given['epochs']} epochs ({student.finished.step:,} steps) of batches of {given['batch_size']}, SGD at a "
        f"learning rate of {optimizer['learning_rate']:g} with momentum {optimizer['momentum']:g} and weight decay "
        f"{optimizer['weight_decay']:g}; seed {student.seed}{averaged}. The weights are those of the last epoch."
    )
    rows = [(name, block) for name, block in {"ce": given["objective"]["ce"], **terms}.items() if block["weight"]]
    lines = [
        f"| {name} | {block['term']} | {block['weight']:g} | {_schedule(block['schedule'])} |" for name, block in rows
    ]
    head = ["| line of the objective | term | weight | schedule |", "| --- | --- | ---: | --- |"]
    yield "\n".join([*head, *lines])


def _schedule(block: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in block.items() if name != "name")
    return f"{block['name']} ({values})" if values else block["name"]


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _measured(student: Student, record: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    yield "## Numbers"
    yield (
        f"On {_asked(student, record)}, each file asked through its own runtime. Times are medians of "
        f"one image at a time on {record['device']['processor']}, kB those of the file, or of the variables of a "
        "network that runs in JAX. A difference is the largest of a logit to the student's own."
    )
    yield table.markdown(record)
    found = summary.get("student")
    if found:
        own = found.get("seeds", {}).get(str(student.seed), found)
        said = [f"{name} {own[key]:.4f}" for key, name in _QUALITY.items() if own.get(key) is not None]
        yield f"What the run itself measured at its end, on the same images: {', '.join(said)}."
    if any(row["kind"] == files.INT8 for row in record["rows"]):
        drawn = record["calibration"]
        yield (
            f"int8: weights and maps, by the ranges of {drawn['images']} training images (seed {drawn['seed']}); "
            "`images` and `logits` are what they are elsewhere."
        )


def _asked(student: Student, record: Mapping[str, Any]) -> str:
    asked, there = record["test_images"], student.dataset.sizes.test
    return f"the {asked:,} test images" if asked == there else f"the first {asked:,} of {there:,} test images"


def _loading(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Loading"
    for row in record["rows"]:
        if row["kind"] in _LOADING:
            yield from _block(row["kind"], record)
    yield f"`{export.RECORD}` has these numbers, versions, and the SHA-256 of every file."


def _block(kind: str, record: Mapping[str, Any]) -> Iterator[str]:
    title, install, remark, code = _LOADING[kind]
    yield f"### {title}"
    yield f"{install}. {remark}"
    for name in ("mean", "std"):
        code = code.replace(name.upper(), str([round(value, 6) for value in record[name]]))
    yield f"```python\n{code}\n```"
