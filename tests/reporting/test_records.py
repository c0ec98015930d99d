import errno
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gkd_jax.errors import UserError
from gkd_jax.reporting import JsonlWriter, read_records, write_json


def _record(epoch, **more):
    return {
        "epoch": epoch,
        "step": 40 * epoch,
        "loss": 1 / epoch,
        "terms": {"kd": {"value": 0.4, "weight": 0.2}},
        **more,
    }


def _strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "run" / "records.jsonl"
    writer = JsonlWriter(path)
    writer.write(_record(1))
    assert read_records(path) == [_record(1)]
    writer.write(_record(2, val_accuracy=None, note="größer\nals"))
    assert read_records(path) == [_record(1), _record(2, val_accuracy=None, note="größer\nals")]
    assert path.read_bytes().count(b"\n") == 2


def test_what_json_has_no_number_for_is_null(tmp_path):
    path = tmp_path / "records.jsonl"
    terms = {"kd": {"value": math.inf, "weights": [0.5, -math.inf], "array": np.array([1.0, np.nan], np.float32)}}
    JsonlWriter(path).write(_record(1, loss=math.nan, terms=terms, rate=np.float32("nan"), steps=np.int32(7)))
    record = _strict(path.read_text())
    assert record["loss"] is None
    assert record["terms"] == {"kd": {"value": None, "weights": [0.5, None], "array": [1.0, None]}}
    assert record["rate"] is None
    assert record["steps"] == 7


def test_a_run_that_resumes_thrice_has_each_epoch_once(tmp_path):
    path = tmp_path / "records.jsonl"
    checkpoint = 0
    for end in (3, 5, 6, 10):  # dies after this epoch; checkpoints are at even ones
        writer = JsonlWriter(path)
        writer.truncate_after(checkpoint)
        for epoch in range(checkpoint + 1, end + 1):
            writer.write(_record(epoch, run=end))
        with path.open("ab") as file:  # killed while it wrote
            file.write(json.dumps(_record(end + 1)).encode()[: 7 * end])
        checkpoint = end - end % 2
        assert [record["epoch"] for record in read_records(path)] == [*range(1, end + 1)]
    records = read_records(path)
    assert [record["run"] for record in records] == [3, 3, 5, 5, 6, 6, 10, 10, 10, 10]


def test_truncation_restores_the_lines_to_the_byte(tmp_path):
    path = tmp_path / "records.jsonl"
    writer = JsonlWriter(path)
    writer.truncate_after(5)
    assert not path.exists()
    for epoch in (1, 2):
        writer.write(_record(epoch))
    two = path.read_bytes()
    writer.truncate_after(2)
    assert path.read_bytes() == two
    path.write_bytes(two[:-1])  # all but the line end arrived
    writer.truncate_after(2)
    assert path.read_bytes() == two
    path.write_bytes(two + b"\0" * 50)  # a file system that crashed
    writer.truncate_after(2)
    assert path.read_bytes() == two
    path.write_bytes(two + b'{"epoch": "\xff\n')
    writer.truncate_after(1)
    assert path.read_bytes() == two[: two.index(b"\n") + 1]
    writer.truncate_after(0)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["records.jsonl"]


@pytest.mark.parametrize(
    "line", ['{"epoch": 2, "lo', "[1, 2]", '{"step": 3}', '{"epoch": 2.5}', '{"epoch": true}', "3"]
)
def test_a_file_damaged_before_its_end_is_refused_and_kept(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(UserError, match=r"records\.jsonl, line 2: expected a JSON object"):
        read_records(path)
    with pytest.raises(UserError, match="line 2"):
        JsonlWriter(path).truncate_after(1)
    assert path.read_text().count("\n") == 3


def test_a_record_needs_an_epoch(tmp_path):
    for record in ({}, {"epoch": "3"}, {"epoch": None}):
        with pytest.raises(ValueError, match="'epoch'"):
            JsonlWriter(tmp_path / "records.jsonl").write(record)


def test_missing_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl: No such file"):
        read_records(tmp_path / "none.jsonl")


def test_a_disk_that_fills_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    writer = JsonlWriter(path)
    writer.write(_record(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(UserError, match=r"cannot write .*records\.jsonl: No space left on device"):
            writer.write(_record(2))
    assert read_records(path) == [_record(1)]
    writer.write(_record(2))
    assert read_records(path) == [_record(1), _record(2)]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_device_is_reported():
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        JsonlWriter("/dev/full").write(_record(1))


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / "summary.json"
    write_json(path, {"accuracy": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(os, name, _full)
        with pytest.raises(UserError, match=r"cannot write .*summary\.json: No space left on device"):
            write_json(path, {"accuracy": 0.9})
        with pytest.raises(UserError, match=r"new\.json"):
            write_json(tmp_path / "new.json", {})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_failed_truncation_keeps_every_record(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    writer = JsonlWriter(path)
    for epoch in (1, 2):
        writer.write(_record(epoch))
    monkeypatch.setattr(os, "replace", _full)
    with pytest.raises(UserError, match="No space left"):
        writer.truncate_after(1)
    assert len(read_records(path)) == 2


def test_json_files_are_strict_and_end_a_line(tmp_path):
    path = tmp_path / "a" / "b" / "summary.json"
    write_json(str(path), {"loss": math.nan, "seeds": (1, 2), "accuracy": np.float64(0.5), 3: True})
    assert _strict(path.read_text()) == {"loss": None, "seeds": [1, 2], "accuracy": 0.5, "3": True}
    assert path.read_text().endswith("}\n")
    with pytest.raises(TypeError):
        write_json(path, {"path": path})
    assert _strict(path.read_text())["seeds"] == [1, 2]


def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write .*run/summary.json"):
        write_json(tmp_path / "run" / "summary.json", {})
    with pytest.raises(UserError, match="cannot write .*run/records.jsonl"):
        JsonlWriter(tmp_path / "run" / "records.jsonl").write(_record(1))


def test_the_import_is_light():
    heavy = ["jax", "matplotlib", "tensorboardX", "google.protobuf"]
    code = f"import sys, gkd_jax.reporting; assert not set(sys.modules) & set({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)
