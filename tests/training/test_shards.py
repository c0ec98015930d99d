import errno
import io
import os
import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest

from gkd_jax.training import shards
from gkd_jax.training.shards import DESCRIPTION, Shards, Writer, key, room

SIZE, SHAPE = 50, (3,)


def rows_of(ids: np.ndarray) -> np.ndarray:
    return (ids[:, None] * 10 + np.arange(3)).astype(np.float16)


def write(folder: pathlib.Path, *ids: int) -> pathlib.Path:
    """Writes one shard, and returns its file."""
    before = set(folder.glob("*.npz"))
    numbers = np.array(ids, np.int32)
    assert Shards(folder, pytest.fail).write(numbers, rows_of(numbers))
    (new,) = set(folder.glob("*.npz")) - before
    return new


def read(folder: pathlib.Path) -> tuple[list[int], list[str]]:
    """Returns the ids that are found, sorted, after comparing their rows, and what was said."""
    said: list[str] = []
    found = []
    for ids, rows in Shards(folder, said.append).read(np.float16, SHAPE, SIZE):
        assert rows.dtype == np.float16
        np.testing.assert_array_equal(rows, rows_of(ids))
        found += ids.tolist()
    return sorted(found), said


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert read(folder) == ([], [])
    write(folder, 3, 1)
    write(folder, 49, 0)
    assert read(folder) == ([0, 1, 3, 49], [])
    assert all(path.suffix == ".npz" for path in folder.iterdir())


def test_no_rows_are_no_file(tmp_path: pathlib.Path) -> None:
    assert Shards(tmp_path, pytest.fail).write(np.zeros(0, np.int32), np.zeros((0, 3), np.float16))
    assert not list(tmp_path.iterdir())


def test_a_shard_can_be_read_by_numpy_without_pickle(tmp_path: pathlib.Path) -> None:
    with np.load(write(tmp_path, 7), allow_pickle=False) as content:
        assert sorted(content) == ["ids", "rows"]
        assert content["ids"].tolist() == [7]
    with zipfile.ZipFile(next(tmp_path.iterdir())) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_shard_is_removed_and_the_rest_kept(tmp_path: pathlib.Path, share: float) -> None:
    write(tmp_path, 1, 2)
    bad = write(tmp_path, *range(10, 40))
    content = bad.read_bytes()
    bad.write_bytes(content[: int(share * len(content))])
    ids, said = read(tmp_path)
    assert ids == [1, 2]
    (message,) = said
    assert bad.name in message
    assert "is removed" in message
    assert not bad.exists()
    assert read(tmp_path) == ([1, 2], [])


def test_no_byte_can_change_unnoticed(tmp_path: pathlib.Path) -> None:
    good = write(tmp_path, 4, 5, 6)
    content = good.read_bytes()
    removed = 0
    for place in range(len(content)):
        good.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        ids, said = read(tmp_path)  # compares the rows of what is accepted: a date in the zip may well differ
        assert ids in ([], [4, 5, 6])
        assert bool(said) == (not ids) == (not good.exists())
        removed += not ids
    assert removed > len(content) / 2


def test_a_flipped_bit_in_the_rows_is_noticed(tmp_path: pathlib.Path) -> None:
    bad = write(tmp_path, 4, 5, 6)
    content = bytearray(bad.read_bytes())
    place = bytes(content).index(rows_of(np.array([4, 5, 6])).tobytes()) + 7
    content[place] ^= 1
    bad.write_bytes(content)
    ids, (message,) = read(tmp_path)
    assert ids == []
    assert "CRC" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"ids": np.array([1]), "rows": np.ones((1, 3), np.float32)}, r"float32\[1, 3\], not float16\[1, 3\]"),
        ({"ids": np.array([1]), "rows": np.ones((1, 4), np.float16)}, r"float16\[1, 4\], not float16\[1, 3\]"),
        ({"ids": np.array([1, 2]), "rows": np.ones((1, 3), np.float16)}, "not float16"),
        ({"ids": np.array([1.0]), "rows": np.ones((1, 3), np.float16)}, "ids are float64"),
        ({"ids": np.array([[1]]), "rows": np.ones((1, 3), np.float16)}, "ids are int64"),
        ({"ids": np.array([SIZE]), "rows": np.ones((1, 3), np.float16)}, "ids are 50 to 50"),
        ({"ids": np.array([-1]), "rows": np.ones((1, 3), np.float16)}, "ids are -1 to -1"),
        ({"ids": np.array([2, 2]), "rows": np.ones((2, 3), np.float16)}, "an id twice"),
        ({"ids": np.array([1]), "rows": np.array([[1, np.nan, 1]], np.float16)}, "NaN or infinity"),
        ({"ids": np.array([1]), "rows": np.array([[1, np.inf, 1]], np.float16)}, "NaN or infinity"),
        ({"ids": np.array([1])}, "KeyError"),
        ({"ids": np.array([1]), "rows": np.array([{"a": 1}])}, "Object arrays cannot be loaded"),
    ],
)
def test_whole_files_of_something_else_are_removed(tmp_path: pathlib.Path, content: dict, reason: str) -> None:
    write(tmp_path, 1)
    bad = tmp_path / "shard-0-other.npz"
    np.savez(bad, **content)
    said: list[str] = []
    assert [ids.tolist() for ids, _ in Shards(tmp_path, said.append).read(np.float16, SHAPE, SIZE)] == [[1]]
    (message,) = said
    assert re.search(reason, message)
    assert not bad.exists()


def test_garbage_is_removed_and_other_peoples_files_are_not(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "shard-1-2.npz").write_bytes(b"no zip at all" * 100)
    (tmp_path / "notes.npz").write_bytes(b"mine")
    ids, (message,) = read(tmp_path)
    assert ids == [1]
    assert "shard-1-2.npz" in message
    assert (tmp_path / "notes.npz").exists()


def test_only_what_was_half_written_long_ago_is_swept(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 1)
    old, new = tmp_path / ".shard-1-a.tmp", tmp_path / ".shard-2-b.tmp"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime - 3700))
    assert read(tmp_path) == ([1], [])
    assert not old.exists()
    assert new.exists()  # its writer may be at it


@pytest.mark.parametrize("where", ["numpy.savez", "os.replace", "os.fsync"])
def test_a_full_disk_is_said_once_and_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    shards = Shards(tmp_path, said.append)
    ids = np.array([1, 2], np.int32)
    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        assert not shards.write(ids, rows_of(ids))
    assert not list(tmp_path.iterdir())
    assert not shards.write(ids, rows_of(ids))  # with space again, but it has given up
    assert not shards.writable
    (message,) = said
    assert message == (
        f"cannot write {tmp_path}: No space left on device; what is computed from here on is not kept for the next run"
    )


def test_a_folder_that_cannot_be_written_does_not_stop(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said: list[str] = []
    shards = Shards(tmp_path / "file" / "folder", said.append)
    shards.describe({"a": 1})
    assert not shards.write(np.array([1]), rows_of(np.array([1])))
    assert not list(shards.read(np.float16, SHAPE, SIZE))
    assert len(said) == 1


def test_what_cannot_be_removed_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def readonly(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    write(tmp_path, 1)
    (tmp_path / "shard-1-2.npz").write_bytes(b"no zip")
    monkeypatch.setattr(pathlib.Path, "unlink", readonly)
    ids, (message,) = read(tmp_path)
    assert ids == [1]
    assert "not used, and cannot be removed (Read-only file system)" in message


def test_what_may_not_be_read_is_left_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    private = write(tmp_path, 2)
    original = pathlib.Path.open

    def locked(self: pathlib.Path, *args: object) -> object:
        if self == private:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "open", locked)
        ids, (message,) = read(tmp_path)
    assert ids == [1]
    assert f"cannot read {private}: Permission denied" in message
    assert read(tmp_path) == ([1, 2], [])


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_while_it_is_read_costs_no_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write(tmp_path, 1)
    unlucky = write(tmp_path, 2)

    class Failing(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            raise OSError(number, os.strerror(number))

    original = pathlib.Path.open

    def opened(self: pathlib.Path, *args: object) -> object:
        if self != unlucky:
            return original(self, *args)
        with original(self, *args) as file:
            return Failing(file.read())

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "open", opened)
        ids, (message,) = read(tmp_path)
    assert ids == [1]
    assert f"cannot read {unlucky}: {os.strerror(number)}; its rows are computed anew" in message
    assert read(tmp_path) == ([1, 2], [])


def test_a_writer_makes_one_shard_of_all_parts_in_order(tmp_path: pathlib.Path) -> None:
    kept = Shards(tmp_path, pytest.fail)
    with Writer() as writer:
        for start in range(0, 40, 10):
            numbers = np.arange(start, start + 10)
            writer.write(kept, [(part, rows_of(part)) for part in np.split(numbers, 2)])
    assert len(list(tmp_path.iterdir())) == 4
    assert read(tmp_path) == (list(range(40)), [])
    assert kept.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_said_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    kept = Shards(tmp_path, said.append)
    monkeypatch.setattr(os, "replace", full)
    with Writer() as writer:
        for number in range(5):
            writer.write(kept, [(np.array([number]), rows_of(np.array([number])))])
    assert len(said) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("total", "free", "expected"),
    [
        (1 << 40, 10 << 30, 8 << 30),  # 2 GB are spared
        (1000, 500, 400),  # a tenth of a small disk
        (1 << 40, 1 << 30, 0),
    ],
)
def test_the_room_on_a_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, expected: int
) -> None:
    asked = []

    def usage(folder: pathlib.Path) -> object:
        asked.append(folder)
        return shutil._ntuple_diskusage(total, total - free, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shards.shutil, "disk_usage", usage)  # type: ignore[attr-defined]
    assert room(tmp_path / "not" / "yet") == expected
    assert asked == [tmp_path]


def test_a_disk_that_says_nothing_is_tried(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(folder: pathlib.Path) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(shards.shutil, "disk_usage", mute)  # type: ignore[attr-defined]
    assert room(tmp_path) == float("inf")


def test_the_description_is_written_once(tmp_path: pathlib.Path) -> None:
    shards = Shards(tmp_path / "new", pytest.fail)
    shards.describe({"teacher": "resnet56", "views": 162})
    shards.describe({"teacher": "another"})
    assert '"teacher": "resnet56"' in (tmp_path / "new" / DESCRIPTION).read_text()
    assert not list(shards.read(np.float16, SHAPE, SIZE))


def test_a_key_depends_on_every_fact_and_on_no_order() -> None:
    facts = {"teacher": "abc", "pad": 4, "mean": (0.1, 0.2)}
    # printf '{"mean": [0.1, 0.2], "pad": 4, "teacher": "abc"}' | sha256sum
    assert key(**facts) == key(**dict(reversed(facts.items()))) == "1a030a3308d311420dab1e512b199016"
    assert len({key(**facts), key(**{**facts, "pad": 3}), key(**{**facts, "mean": (0.2, 0.1)}), key(pad=4)}) == 4
    with pytest.raises(TypeError):
        key(what=object())
    with pytest.raises(ValueError, match="JSON"):
        key(what=float("nan"))
