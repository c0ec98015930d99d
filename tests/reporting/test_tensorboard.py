import errno
import os
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter, masked_crc32c

from gkd_jax.errors import UserError
from gkd_jax.reporting import TensorBoardWriter


def _events(logdir):
    """Reads the event files of a folder as TensorBoard does: framed, checksummed, in the order of their names."""
    for path in sorted(logdir.iterdir()):
        assert "tfevents" in path.name
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
            body = content[12 : 12 + length]
            assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked_crc32c(body)
            yield event_pb2.Event.FromString(body)
            content = content[16 + length :]


def _shown(logdir):
    """Returns what TensorBoard shows: {tag: {step: value}}, after a restart without the events from its step on."""
    shown = {}
    for event in _events(logdir):
        if event.HasField("session_log"):
            assert event.session_log.status == event_pb2.SessionLog.START
            for values in shown.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_nested_records_are_scalars_by_their_place(tmp_path):
    with TensorBoardWriter(tmp_path / "tb") as writer:
        kd = {"value": np.float32(0.5), "weight": 0.25, "stage": "growth"}
        writer.write({"epoch": 1, "step": 40, "loss": 1.5, "terms": {"kd": kd}, "val_accuracy": None, "list": [1]})
        # On the disk before the file is closed
        assert _shown(tmp_path / "tb") == {
            "epoch": {40: 1.0},
            "loss": {40: 1.5},
            "terms/kd/value": {40: 0.5},
            "terms/kd/weight": {40: 0.25},
        }
        writer.write({"step": 80, "loss": float("nan")})
    assert np.isnan(_shown(tmp_path / "tb")["loss"][80])
    first = next(_events(tmp_path / "tb"))
    assert first.file_version == "brain.Event:2"


def test_a_resumed_run_hides_what_it_does_again(tmp_path):
    restored = 0
    for run, steps in enumerate([(40, 80, 120), (80, 120), (120, 160)]):
        # All within a second: no file may replace another
        with TensorBoardWriter(tmp_path, purge_step=restored + 1 if run else None) as writer:
            for step in steps:
                writer.write({"step": step, "loss": float(run)})
        restored = steps[0] if run == 0 else 80
    assert len(list(tmp_path.iterdir())) == 3
    assert _shown(tmp_path) == {"loss": {40: 0.0, 80: 1.0, 120: 2.0, 160: 2.0}}


def test_a_disk_that_fills_is_reported(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with TensorBoardWriter(tmp_path) as writer, monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "flush", full)
        with pytest.raises(UserError, match=r"cannot write .*tfevents.*: No space left on device"):
            writer.write({"step": 1, "loss": 0.0})


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "tb").write_text("")
    with pytest.raises(UserError, match="cannot write .*tb"):
        TensorBoardWriter(tmp_path / "tb")
