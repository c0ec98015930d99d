"""The files of an export: how each is written, asked again, and when it is as good as the run's own network."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from gkd_jax import models
from gkd_jax.errors import UserError
from gkd_jax.export.options import Options
from gkd_jax.export.student import Student
from gkd_jax.interop import litert, onnx, stablehlo, torch, weights
from gkd_jax.interop.answer import Answer
from gkd_jax.interop.served import Images, Logits, Served, network

# Of the largest logit. Weights that are read back are the same numbers in the same program.
TOLERANCE = {"stablehlo": 1e-4, "safetensors": 1e-6, "onnx": 1e-4, "litert": 1e-4}
INT8 = "litert, int8"
TORCH = "safetensors, PyTorch"
_ROUNDING = 1e-9  # of a difference of shares


class File(NamedTuple):
    """One file of an export.

    Attributes:
      kind: what the table calls it.
      name: of the file.
      tolerance: how far its logits may be from the run's own, as a share of the largest or of 1; None if only its
        accuracy counts.
      write: `(path) -> None`.
      ask: `(path) -> Answer` on all test images, by the format's own runtime.
      class_names: that travel in the file, as its format can hold them; None where it has no place.
    """

    kind: str
    name: str
    tolerance: float | None
    write: Callable[[pathlib.Path], None]
    ask: Callable[[pathlib.Path], Answer]
    class_names: tuple[str, ...] | None = None


def require(options: Options) -> None:
    """Raises `UserError` unless all that the formats take is installed."""
    for module in (stablehlo, onnx, litert):
        if module.__name__.rpartition(".")[2] in options.formats:
            module.require()


def files(student: Student, options: Options) -> Iterator[File]:
    """Yields the files that were asked for."""
    served, images = student.served, student.test.images
    for name in options.formats:
        tolerance = TOLERANCE[name] if options.tolerance is None else options.tolerance
        if name == "stablehlo":
            yield File(name, "model.stablehlo", tolerance, _write(stablehlo, served), _ask(stablehlo, images))
        elif name == "safetensors":
            yield from _weights(student, tolerance)
        elif name == "onnx":
            yield File(name, "model.onnx", tolerance, _write(onnx, served), _ask(onnx, images), served.class_names)
        else:
            names = litert.labels(served)
            yield File(name, "model.tflite", tolerance, _write(litert, served), _ask(litert, images), names)
    if options.quantize:

        def quantised(path: pathlib.Path) -> None:
            litert.write(served, path, student.calibration())

        yield File(INT8, "model_int8.tflite", None, quantised, _ask(litert, images), litert.labels(served))


def _write(module: Any, served: Served) -> Callable[[pathlib.Path], None]:
    return lambda path: module.write(served, path)


def _ask(module: Any, images: Images) -> Callable[[pathlib.Path], Answer]:
    return lambda path: module.ask(path, images)


def _weights(student: Student, tolerance: float) -> Iterator[File]:
    served, variables = student.served, student.finished.variables
    form = models.conv_form(jax.default_backend())

    def ask(path: pathlib.Path) -> Answer:
        read = weights.load(path, conv=form)
        return Answer(student.ask(read.model, read.variables), None, "gkd_jax", read.class_names)

    def write(path: pathlib.Path) -> None:
        weights.write(served, variables, path, final=student.final)

    yield File("safetensors", "weights.safetensors", tolerance, write, ask, served.class_names)
    arrays = weights.in_torch(served.name, variables)
    if arrays is None:
        return

    def ask_torch(path: pathlib.Path) -> Answer:
        channels, classes = served.image_shape[2], len(served.class_names)
        arrays, runtime = weights.read_torch(path)
        read = torch.convert(served.name, arrays, num_classes=classes, channels=channels)
        model, names = network(served.name, classes, conv=form), weights.classes(path)
        return Answer(student.ask(model, read), None, runtime, names)

    def write_torch(path: pathlib.Path) -> None:
        weights.write_torch(served, arrays, path)

    yield File(TORCH, "weights.torch.safetensors", tolerance, write_torch, ask_torch, served.class_names)


class Judged(NamedTuple):
    """How good a file is.

    Attributes:
      accuracy: on the test images.
      difference: the largest of a logit to the run's own.
    """

    accuracy: float
    difference: float


def judge(file: File, answer: Answer, own: Logits, labels: np.ndarray, max_drop: float) -> Judged:
    """Sets what a file said of the test images beside what the run's own network says.

    Args:
      file: that was asked.
      answer: of its runtime.
      own: logits of the run's own network.
      labels: of the images.
      max_drop: see `Options`; it bounds the file that is quantised.

    Raises:
      UserError: if it names other classes, or its logits, or the accuracy of a quantised network, are farther from the
        run's own than is allowed.
    """
    if answer.class_names != file.class_names:
        named, wanted = (list(names or ()) for names in (answer.class_names, file.class_names))
        raise UserError(f"{file.name} names the classes {named}, and should name them {wanted}; nothing was exported")
    if answer.logits.shape != own.shape:
        raise UserError(f"{file.name} gives logits of shape {answer.logits.shape}, and should give {own.shape}")
    apart = np.abs(answer.logits - own).max(-1)
    accuracy, before = (float(np.mean(logits.argmax(-1) == labels)) for logits in (answer.logits, own))
    if file.tolerance is not None:
        allowed = file.tolerance * max(1.0, float(np.abs(own).max()))
        if not apart.max() <= allowed:  # NaN is not
            raise UserError(
                f"{file.name}: its logits are up to {apart.max():.3g} from the run's own (test image "
                f"{apart.argmax()}), and may be {allowed:.3g} with a tolerance of {file.tolerance:g} (--tolerance); "
                "nothing was exported"
            )
    if file.kind == INT8 and before - accuracy > max_drop + _ROUNDING:
        raise UserError(
            f"{file.name}: its test accuracy is {100 * accuracy:.2f} %, {100 * (before - accuracy):.2f} points below "
            f"the run's own, and --max_drop={max_drop:g} allows {100 * max_drop:g}; nothing was exported"
        )
    return Judged(accuracy, float(apart.max()))
