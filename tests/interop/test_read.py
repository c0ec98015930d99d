import os
import sys
import tarfile

import ml_dtypes
import numpy as np
import pytest
import state_dicts
from safetensors.numpy import save_file

from gkd_jax.errors import UserError
from gkd_jax.interop.torch import read


def _refused(path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def _same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_safetensors_are_read_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what `import torch` finds where it is not installed
    arrays = state_dicts.resnet()
    save_file(arrays, tmp_path / "weights.safetensors")
    _same(read(tmp_path / "weights.safetensors"), arrays)
    save_file({f"module.{name}": array for name, array in arrays.items()}, tmp_path / "parallel.safetensors")
    _same(read(str(tmp_path / "parallel.safetensors")), arrays)


def test_bfloat16_in_safetensors(tmp_path):
    array = np.array([1, 2.5], ml_dtypes.bfloat16)
    save_file({"a": array}, tmp_path / "half.safetensors")
    _same(read(tmp_path / "half.safetensors"), {"a": array})


def test_only_a_prefix_that_all_names_share_goes(tmp_path):
    arrays = {"module.a": np.zeros(2), "b": np.ones(2)}
    save_file(arrays, tmp_path / "some.safetensors")
    _same(read(tmp_path / "some.safetensors"), arrays)


def test_files_that_are_not_there_or_damaged(tmp_path):
    assert _refused(tmp_path / "none.pth") == "no such file"
    assert _refused(tmp_path) == "not a file"
    save_file(state_dicts.resnet(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 99)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("cut", "noise", "empty"):
        assert _refused(tmp_path / f"{name}.safetensors").startswith("damaged, or no .safetensors file (")
    save_file({}, tmp_path / "nothing.safetensors")
    assert _refused(tmp_path / "nothing.safetensors") == "holds no array"


def test_pytorch_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    message = _refused(tmp_path / "weights.pth")
    assert message == (
        "is read by PyTorch, which is not installed: pip install 'gkd_jax[torch]', or convert the file to "
        ".safetensors, which is read without it"
    )


class Opener:
    """What a file could do to whoever unpickles it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


class TestWithTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture
    def tensors(self, torch):
        return {name: torch.from_numpy(np.array(array)) for name, array in state_dicts.resnet().items()}

    @pytest.mark.parametrize("ending", [".pth", ".pt", ".pth.tar", ""])
    def test_any_other_ending_is_pytorch(self, torch, tensors, tmp_path, ending):
        torch.save(tensors, tmp_path / f"weights{ending}")
        _same(read(tmp_path / f"weights{ending}"), state_dicts.resnet())

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("key", ["model", "state_dict", "net"])
    def test_wrappings(self, torch, tensors, tmp_path, key, prefix):
        held = {f"{prefix}{name}": value for name, value in tensors.items()}
        torch.save({"epoch": 240, key: held, "optimizer": {"state": {}}}, tmp_path / "ckpt_epoch_240.pth")
        _same(read(tmp_path / "ckpt_epoch_240.pth"), state_dicts.resnet())

    def test_parameters_and_other_types(self, torch, tmp_path):
        held = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2).bfloat16(), "n": torch.tensor(3)}
        torch.save(held, tmp_path / "weights.pth")
        found = read(tmp_path / "weights.pth")
        _same(found, {"a": np.ones(2), "b": np.ones(2), "n": np.array(3)})
        assert {name: array.dtype.name for name, array in found.items()} == {
            "a": "float32",
            "b": "float32",
            "n": "int64",
        }

    def test_nothing_is_unpickled(self, torch, tensors, tmp_path):
        torch.save({"opt": Opener(tmp_path / "opened"), "model": tensors}, tmp_path / "last.pth")
        message = _refused(tmp_path / "last.pth")
        assert "beside its arrays, and such files are not loaded, since they may run any code" in message
        assert "holds a Python object (posix.mkdir)" in message or os.name != "posix"
        assert not (tmp_path / "opened").exists()

    def test_what_holds_no_state_dict(self, torch, tensors, tmp_path):
        file = tmp_path / "weights.pth"
        torch.save([1, 2], file)
        assert _refused(file) == "holds list; it must hold a state_dict, arrays by name"
        torch.save({}, file)
        assert _refused(file) == "holds dict; it must hold a state_dict, arrays by name"
        torch.save({"epoch": 3, "teacher": tensors}, file)
        assert _refused(file) == (
            "'epoch', 'teacher' there are no arrays; it must hold a state_dict, arrays by name, or one under 'model', "
            "'state_dict', 'net'"
        )

    def test_damaged_files_and_archives(self, torch, tensors, tmp_path):
        torch.save(tensors, tmp_path / "whole.pth")
        (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-99])
        (tmp_path / "noise.pth").write_bytes(b"noise" * 99)
        (tmp_path / "empty.pth").write_bytes(b"")
        for name in ("cut", "noise", "empty"):
            assert _refused(tmp_path / f"{name}.pth").startswith("damaged, cut short or no file of PyTorch (")
        with tarfile.open(tmp_path / "teachers.tar", "w") as archive:
            archive.add(tmp_path / "whole.pth", "resnet8_vanilla/ckpt_epoch_240.pth")
        wanted = "is an archive of files; unpack it and give the one with the weights"
        assert _refused(tmp_path / "teachers.tar") == wanted

    def test_versions_that_cannot_be_trusted(self, torch, tensors, tmp_path, monkeypatch):
        torch.save(tensors, tmp_path / "weights.pth")
        monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
        assert _refused(tmp_path / "weights.pth").startswith("PyTorch 2.5.1 cannot read a file without trusting it")
