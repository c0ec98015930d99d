"""LiteRT, once TensorFlow Lite, by jax2tf and TensorFlow's converter: for one image at a time, on a device.

The signature takes "images", uint8 [1, h, w, c], and returns "logits". The class names are the file `labels.txt` in the
zip archive at the end of the file, one a line: `unzip model.tflite` finds it, and so do the tools of the format.
"""

import contextlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator

from gkd_jax.interop.answer import Answer, answer, needed, not_run, refused, unheard
from gkd_jax.interop.recognised import LITERT, rewritten
from gkd_jax.interop.served import INPUT, OUTPUT, Images, Served

EXTRA = "export-litert"
LABELS = "labels.txt"


def require() -> None:
    """Raises `UserError` where what it takes is not installed."""
    needed("litert", EXTRA, "tensorflow", "ai_edge_litert")


def write(served: Served, path: pathlib.Path, calibration: Images | None = None) -> None:
    """Writes the function.

    Args:
      served: the function.
      path: of the file.
      calibration: images by which to find the range of every map; weights and maps are then int8, argument and result
        are what they were. In float32 without.

    Raises:
      UserError: if it holds an operation that LiteRT has not, or not in int8.
    """
    with refused("litert", served.name), _quiet():
        content = _converted(served, calibration)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        # A fixed date, so that the same network is the same file
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in labels(served)))


def labels(served: Served) -> tuple[str, ...]:
    """Returns the class names as the file holds them, each on one line."""
    return tuple(" ".join(name.split()) for name in served.class_names)


def _converted(served: Served, calibration: Images | None) -> bytes:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from jax.experimental import jax2tf

    one = served.images(1)
    function = jax2tf.convert(rewritten(served.logits, one, LITERT), with_gradient=False)
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {OUTPUT: function(images)},
        input_signature=[tf.TensorSpec(one.shape, tf.uint8, name=INPUT)],
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    content: bytes = converter.convert()
    return content


def ask(path: pathlib.Path, images: Images) -> Answer:
    """Returns what the LiteRT interpreter makes of the file, image by image.

    Raises:
      UserError: if it cannot run it.
    """
    with not_run(path.name, "the LiteRT interpreter"), _quiet():
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(path)).get_signature_runner()
        with zipfile.ZipFile(path) as archive:
            names = tuple(archive.read(LABELS).decode().splitlines())
        return answer(lambda one: runner(**{INPUT: one})[OUTPUT], images, "ai-edge-litert", names, batch=1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TensorFlow's C++ says at every step from the standard error stream; what it raises is heard."""
    with unheard("tensorflow"), tempfile.TemporaryFile() as unread:
        kept = os.dup(2)
        os.dup2(unread.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
