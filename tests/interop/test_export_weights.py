"""Weights as safetensors: read back bit by bit, by us and by PyTorch, and nothing else is taken for them."""

import importlib.metadata
import importlib.util
import sys

import export_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd_jax import data
from gkd_jax.errors import UserError
from gkd_jax.interop import torch, weights
from gkd_jax.interop.served import network, serve

NAMES = ["resnet8", "shufflenetv2"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of each kind, of a dense network."""
    folder, case = tmp_path_factory.mktemp("weights"), export_case.case("resnet8")
    weights.write(case.served, case.variables, folder / "ours.safetensors")
    arrays = weights.in_torch("resnet8", case.variables)
    weights.write_torch(case.served, arrays, folder / "theirs.safetensors")
    return folder


def _same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_ours_come_back(written):
    case, found = export_case.case("resnet8"), weights.load(written / "ours.safetensors")
    _same(found.variables, case.variables)
    assert (found.class_names, found.image_shape) == (export_case.NAMES, (16, 16, 3))
    np.testing.assert_array_equal(np.float32([found.mean, found.std]), [export_case.MEAN, export_case.STD])
    x = data.normalise(jnp.asarray(case.images), found.mean, found.std)
    logits = jax.jit(lambda variables, x: found.model.apply(variables, x, train=False)[0].logits)(found.variables, x)
    np.testing.assert_allclose(logits, case.logits, atol=1e-4, rtol=0)


def test_metadata_say_what_graphs_do(written):
    for name, kind in {"ours": "gkd_jax", "theirs": "pt"}.items():
        about = weights.metadata(written / f"{name}.safetensors")
        assert (about["format"], about["model"]) == (kind, "resnet8")
        assert about["class_names"] == '["ape", "bee", "crow d\'été", "dog"]'
        assert about["image_shape"] == "[16, 16, 3]"


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_come_back_through_the_import(name, tmp_path):
    case = export_case.case(name)
    arrays = weights.in_torch(name, case.variables)
    weights.write_torch(case.served, arrays, tmp_path / "weights.safetensors")
    found = torch.convert(name, torch.read(tmp_path / "weights.safetensors"))
    _same(found, case.variables)


@pytest.mark.parametrize("name", [*NAMES, "mobilenetv2_half", "vgg8", "wrn_16_2", "shufflenetv1"])
def test_every_array_of_pytorch_is_there(name):
    pytorch = pytest.importorskip("torch")
    import torch_networks

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network(name, 10).init, jax.random.key(0), image)
    arrays = weights.in_torch(name, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    with pytorch.device("meta"):
        wanted = torch_networks.create(name, 10).state_dict()
    wanted = {name: tuple(value.shape) for name, value in wanted.items() if "num_batches" not in name}
    assert {name: array.shape for name, array in arrays.items()} == wanted


def test_pytorch_says_the_same(written):
    pytorch = pytest.importorskip("torch")
    import torch_networks
    from safetensors.torch import load_file as load_torch

    case = export_case.case("resnet8")
    module = torch_networks.create("resnet8", 4)
    module.load_state_dict(load_torch(written / "theirs.safetensors"))
    images = data.normalise(jnp.asarray(case.images), export_case.MEAN, export_case.STD)
    with pytorch.no_grad():
        found = module.eval()(pytorch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.numpy(), case.logits, atol=1e-4, rtol=0)


def test_what_reads_pytorchs_file_is_pytorch_where_it_is_installed(written, monkeypatch):
    file, wanted = written / "theirs.safetensors", load_file(written / "theirs.safetensors")
    assert weights.classes(file) == export_case.NAMES
    found, runtime = weights.read_torch(file)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    if importlib.util.find_spec("torch"):
        assert runtime == f"torch {importlib.metadata.version('torch')}"
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    found, runtime = weights.read_torch(file)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert runtime == "gkd_jax.interop.torch"


def test_a_network_that_pytorch_has_not():
    case = export_case.case("resnet8")
    assert weights.in_torch("my_own", case.variables) is None
    # Called as one that it has, and another
    assert weights.in_torch("resnet26", {"params": {"block": {"kernel": np.zeros((3, 3))}}, "batch_stats": {}}) is None


def test_a_student_with_its_teachers_classifier(tmp_path):
    model = network("resnet8", 4, final=(2, 2, 6))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    frozen = {"kernel": jnp.arange(24.0).reshape(6, 4), "bias": jnp.arange(4.0)}
    variables = {**variables, "frozen": frozen}
    served = serve("resnet8", model, variables, export_case.NAMES, (16, 16, 3), export_case.MEAN, export_case.STD)
    weights.write(served, variables, tmp_path / "weights.safetensors", final=(2, 2, 6))
    found = weights.load(tmp_path / "weights.safetensors")
    _same(found.variables, variables)
    np.testing.assert_array_equal(found.model.classifier(found.variables)[0], frozen["kernel"])
    assert weights.in_torch("resnet8", variables) is None


def _refused(path):
    with pytest.raises(UserError) as caught:
        weights.load(path)
    assert str(caught.value).startswith(f"{path}")
    return str(caught.value)


def test_other_files_are_refused(written, tmp_path):
    assert "do not say that gkd_jax wrote it" in _refused(written / "theirs.safetensors")
    arrays, about = load_file(written / "ours.safetensors"), weights.metadata(written / "ours.safetensors")
    file = tmp_path / "weights.safetensors"
    assert "no such file" in _refused(file)
    save_file(arrays, file, {**about, "model": "nobodys"})
    assert "holds a network 'nobodys', which is not registered" in _refused(file)
    save_file({**arrays, "params/more": np.zeros(3)}, file, about)
    assert "params/more is (3,), and should be not there in resnet8" in _refused(file)
    place = "params/classifier/bias"
    save_file({**arrays, place: np.zeros(3, np.float32)}, file, about)
    assert f"{place} is (3,), and should be (4,) in resnet8" in _refused(file)
    for lacking in ("class_names", "image_shape", "mean", "std", "model"):
        save_file(arrays, file, {name: text for name, text in about.items() if name != lacking})
        assert f"its metadata are not what gkd_jax writes there ('{lacking}')" in _refused(file)
    save_file(arrays, file, {**about, "mean": "half"})
    assert "its metadata" in _refused(file)
    file.write_bytes((written / "ours.safetensors").read_bytes()[:900])
    assert "damaged" in _refused(file)
