"""`python litert_case.py NETWORK,...`: writes networks for LiteRT and says what came of it, as JSON.

Run by a Python that has TensorFlow, which the tests' own may not.
"""

import json
import pathlib
import sys
import tempfile

import export_case
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from gkd_jax.errors import UserError
from gkd_jax.interop import litert


def of_network(name: str, folder: pathlib.Path) -> dict[str, object]:
    """Returns how far float32 and int8 are from the network's own logits, and what the files are like."""
    case, found = export_case.case(name), {}
    for kind, calibration in {"float": None, "int8": case.images}.items():
        path = folder / f"{name}-{kind}.tflite"
        litert.write(case.served, path, calibration)
        asked = litert.ask(path, case.images)
        interpreter = Interpreter(str(path))
        (given,) = interpreter.get_input_details()
        (made,) = interpreter.get_output_details()
        tensors = interpreter.get_tensor_details()
        found[kind] = {
            "difference": float(np.abs(asked.logits - case.logits).max()),
            "alike": float(np.corrcoef(asked.logits.ravel(), case.logits.ravel())[0, 1]),
            "names": asked.class_names,
            "runtime": asked.runtime,
            "milliseconds": asked.milliseconds,
            "given": [np.dtype(given["dtype"]).name, given["shape"].tolist()],
            "made": [np.dtype(made["dtype"]).name, made["shape"].tolist()],
            "int8": sum(np.dtype(tensor["dtype"]) == np.int8 for tensor in tensors),
            "signature": interpreter.get_signature_list(),
            "bytes": path.stat().st_size,
        }
    return found


def of_a_caller(folder: pathlib.Path) -> str:
    """Returns why a network that asks Python in the middle cannot be written."""
    try:
        litert.write(export_case.calls_back(), folder / "model.tflite")
    except UserError as error:
        assert not (folder / "model.tflite").exists()
        return str(error)
    return ""


def of_a_damaged_file(folder: pathlib.Path) -> str:
    """Returns why a file that was cut short cannot be asked."""
    (folder / "model.tflite").write_bytes(b"cut short")
    try:
        litert.ask(folder / "model.tflite", np.zeros((1, 4, 4, 3), np.uint8))
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        folder = pathlib.Path(where)
        said = {name: of_network(name, folder) for name in sys.argv[1].split(",")}
        others = {"caller": of_a_caller(folder), "damaged": of_a_damaged_file(folder)}
        print(json.dumps({"networks": said, **others}))  # noqa: T201
