"""ONNX by jax2onnx: for any number of images, read by ONNX Runtime and many others.

The argument is called "images", the result "logits". The class names stand as a JSON list under "class_names" in the
file's metadata.
"""

import json
import pathlib

from jax import export

from gkd_jax.interop.answer import Answer, answer, needed, not_run, refused, unheard
from gkd_jax.interop.recognised import ONNX, rewritten
from gkd_jax.interop.served import INPUT, OUTPUT, Images, Served

EXTRA = "export"
CLASSES = "class_names"


def require() -> None:
    """Raises `UserError` where what it takes is not installed."""
    needed("onnx", EXTRA, "jax2onnx", "onnx", "onnxruntime")


def write(served: Served, path: pathlib.Path) -> None:
    """Writes the function.

    Raises:
      UserError: if it holds an operation that ONNX, or the converter, has not.
    """
    (count,) = export.symbolic_shape("b")
    images = served.images(count)
    with refused("onnx", served.name), unheard("jax2onnx", "onnx_ir"):
        import jax2onnx
        import onnx

        # Traced before the converter puts functions of its own in the place of flax's, which take fewer arguments
        function = rewritten(served.logits, images, ONNX)
        model = jax2onnx.to_onnx(function, [images], model_name=served.name, input_names=[INPUT], output_names=[OUTPUT])
        onnx.helper.set_model_props(model, {CLASSES: json.dumps(served.class_names, ensure_ascii=False)})
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
    path.write_bytes(content)


def ask(path: pathlib.Path, images: Images) -> Answer:
    """Returns what ONNX Runtime makes of the file, on the CPU.

    Raises:
      UserError: if it cannot run it.
    """
    with not_run(path.name, "ONNX Runtime"):
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # what it says otherwise is raised besides
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        held = json.loads(session.get_modelmeta().custom_metadata_map[CLASSES])
        return answer(lambda some: session.run([OUTPUT], {INPUT: some})[0], images, "onnxruntime", tuple(held))
