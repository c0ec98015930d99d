"""StableHLO and ONNX of every kind of network: the same logits for any number of images, by their own runtimes."""

import re

import export_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.errors import UserError
from gkd_jax.interop import answer, onnx, stablehlo
from gkd_jax.interop.served import serve

# Dense, grouped and depthwise convolutions, shuffled channels, both kinds of pooling
QUICK = ["resnet8"]
MARKS = {
    "mobilenetv2_half": pytest.mark.slow,
    "shufflenetv1": pytest.mark.slow,
    "shufflenetv2": pytest.mark.exhaustive,
    "vgg8": pytest.mark.exhaustive,
}
NETWORKS = [*QUICK, *(pytest.param(name, marks=mark) for name, mark in MARKS.items())]
TOLERANCE = 1e-4  # that of test_parity.py


@pytest.fixture(scope="module")
def _stablehlo():
    pytest.importorskip("flatbuffers")


@pytest.fixture(scope="module")
def _onnx():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with answer.unheard():
        pytest.importorskip("jax2onnx")


@pytest.mark.usefixtures("_stablehlo")
@pytest.mark.parametrize("name", [*QUICK, pytest.param("shufflenetv1", marks=pytest.mark.slow)])
def test_stablehlo(name, tmp_path):
    case = export_case.case(name)
    stablehlo.write(case.served, tmp_path / "model.stablehlo")
    content = (tmp_path / "model.stablehlo").read_bytes()
    read = jax.export.deserialize(bytearray(content))
    assert read.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 5) if name == QUICK[0] else (5,):
        found = jax.jit(read.call, compiler_options=export_case.FAST)(case.images[:count])
        assert (found.dtype, found.shape) == (np.float32, (count, 4))
        np.testing.assert_allclose(found, case.logits[:count], atol=TOLERANCE, rtol=0)
    assert not re.search(rb"[\w/]+\.py", content)  # where on this machine the code lies


@pytest.mark.usefixtures("_stablehlo")
@pytest.mark.slow
def test_stablehlo_with_jax_alone(tmp_path):
    case = export_case.case("resnet8")
    stablehlo.write(case.served, tmp_path / "model.stablehlo")
    found = stablehlo.ask(tmp_path / "model.stablehlo", case.images)
    np.testing.assert_allclose(found.logits, case.logits, atol=TOLERANCE, rtol=0)
    assert found.milliseconds > 0
    assert found.runtime == f"jax {jax.__version__}"
    (tmp_path / "model.stablehlo").write_bytes(b"cut short")
    with pytest.raises(UserError, match="model.stablehlo cannot be run by JAX alone: "):
        stablehlo.ask(tmp_path / "model.stablehlo", case.images)


@pytest.mark.usefixtures("_onnx")
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name, tmp_path):
    import onnxruntime

    case = export_case.case(name)
    onnx.write(case.served, tmp_path / "model.onnx")
    found = onnx.ask(tmp_path / "model.onnx", case.images)
    np.testing.assert_allclose(found.logits, case.logits, atol=TOLERANCE, rtol=0)
    assert found.class_names == export_case.NAMES
    assert found.runtime == f"onnxruntime {onnxruntime.__version__}"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["b", 16, 16, 3])
    assert (made.name, made.type, made.shape) == ("logits", "tensor(float)", ["b", 4])
    one = session.run(["logits"], {"images": case.images[:1]})[0]
    np.testing.assert_allclose(one, case.logits[:1], atol=TOLERANCE, rtol=0)


@pytest.mark.usefixtures("_onnx")
def test_a_damaged_onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"cut short")
    with pytest.raises(UserError) as caught:
        onnx.ask(tmp_path / "model.onnx", np.zeros((1, 2, 2, 3), np.uint8))
    assert re.fullmatch(r"model.onnx cannot be run by ONNX Runtime: .*INVALID_PROTOBUF.*", str(caught.value))


@pytest.mark.usefixtures("_stablehlo")
def test_an_operation_that_stablehlo_lacks(tmp_path):
    with pytest.raises(UserError, match=r"--format stablehlo: the network 'caller' cannot be written .* leave"):
        stablehlo.write(export_case.calls_back(), tmp_path / "model.stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_onnx")
def test_an_operation_that_onnx_lacks(tmp_path):
    with pytest.raises(UserError, match=r"--format onnx: the network 'caller' cannot be .*pure_callback.*leave"):
        onnx.write(export_case.calls_back(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_folds_says_the_same():
    case = export_case.case("resnet8")
    size, constants = case.served.image_shape, (export_case.MEAN, export_case.STD)
    again = serve("resnet8", case.model._replace(fold=None), case.variables, export_case.NAMES, size, *constants)
    found, folded = (jax.jit(served.logits)(jnp.asarray(case.images)) for served in (again, case.served))
    np.testing.assert_allclose(found, case.logits, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(folded, case.logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [(stablehlo, "flatbuffers", "export"), (onnx, "jax2onnx", "export"), (onnx, "onnxruntime", "export")],
)
def test_a_missing_extra_is_named(module, missing, extra, monkeypatch):
    there = lambda name: None if name == missing else object()
    monkeypatch.setattr(answer.importlib.util, "find_spec", there)
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(UserError, match=rf"--format {name} needs {missing}, .* pip install 'gkd_jax\[{extra}\]'"):
        module.require()
