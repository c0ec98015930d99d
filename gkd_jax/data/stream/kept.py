"""Views of images that are kept with what a teacher said of them: a teacher that is paid for once, of a million images.

Random-resized crops cannot all be kept as those of a padded image can (`data.views`). So K of each image are drawn once
and for all, the teacher is asked about these, and students see no others: each epoch another one of the K (Shen and
Xing, "A fast knowledge distillation framework for visual recognition", 2022, arXiv 2112.01528, which keeps several
hundred and the five largest probabilities).

Of each view a row holds the box (four uint16), whether it is mirrored (uint8), the `top` likeliest classes (uint16)
with the logarithms of their probabilities (float16), and the logarithm of what the other classes have together
(float16), which is shared out evenly among them. Logarithms rather than probabilities, since those of a confident
teacher vanish in float16 (below 6e-8) while a temperature of 4 still sees them. That is 11 + 4 · top bytes.

A folder holds `views.json` and one file for every 4,096 images, each written under a temporary name and renamed, so any
number of hosts can write different ones into one folder, and read them all:

    8 bytes   GKDVIEWS
    uint32    version of the format, little-endian as everything
    uint32    length of the header
    header    JSON: key of the specification, number of the part, images, bytes and SHA-256 of what follows
    zeros     to a multiple of 64 bytes
    arrays    boxes, flip, ids, logs, rest, one after another, rows of an image together
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float16, Int

from gkd_jax.data.stream.draws import Box, View
from gkd_jax.errors import UserError

PART = 4096  # images of a file
DESCRIPTION = "views.json"
_MAGIC, _VERSION, _ALIGNED = b"GKDVIEWS", 1, 64
_LOWEST = float(np.finfo(np.float16).min)


class Rows(NamedTuple):
    """Some kept views, and what the teacher said of them.

    Attributes:
      boxes: top, left, height, width, in pixels of the whole image.
      flip: whether they are mirrored.
      ids: the classes that the teacher finds likeliest, the first first.
      logs: logarithms of their probabilities.
      rest: the logarithm of what all other classes have together.
    """

    boxes: Int[np.ndarray, "m 4"]
    flip: Bool[np.ndarray, " m"]
    ids: Int[np.ndarray, "m k"]
    logs: Float16[np.ndarray, "m k"]
    rest: Float16[np.ndarray, " m"]

    def views(self) -> list[View]:
        """Returns each as it was drawn."""
        return [View(Box(*map(int, box)), bool(flip)) for box, flip in zip(self.boxes, self.flip, strict=True)]


@dataclasses.dataclass(frozen=True)
class Specification:
    """All that kept views depend on; equal ones share a folder.

    Attributes:
      examples: images of the training split.
      classes: that the teacher knows.
      crops: views of each image.
      top: classes that are held of each view.
      size: side of a crop as the teacher saw it.
      seed: of the views.
      flip: whether they are mirrored at random.
      facts: all else, as JSON can hold it: the teacher's hash, the data set's digest, the normalisation.
    """

    examples: int
    classes: int
    crops: int
    top: int
    size: int
    seed: int = 0
    flip: bool = True
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `UserError` for numbers that no views can have."""
        if self.crops < 1:
            raise UserError(f"teacher.cache keeps {self.crops} views of each image; it must be at least 1")
        if not 1 <= self.top <= self.classes:
            raise UserError(
                f"teacher.cache_top is {self.top}; of {self.classes} classes it must be 1 to {self.classes}"
            )

    def record(self) -> dict[str, Any]:
        """Returns what `views.json` holds."""
        return {"format": _VERSION, "images_a_part": PART, **dataclasses.asdict(self), "facts": dict(self.facts)}

    @property
    def key(self) -> str:
        """32 hexadecimal digits that stand for all of it."""
        content = json.dumps(self.record(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows on disk, without headers."""
        return self.examples * self.crops * sum(math.prod(shape) * kind.itemsize for kind, shape in self.layout())

    def layout(self) -> tuple[tuple[np.dtype, tuple[int, ...]], ...]:
        """Returns type and shape of one row of each array: boxes, flip, ids, logs, rest."""
        ids = "<u2" if self.classes <= 1 << 16 else "<u4"
        given = (("<u2", (4,)), ("u1", ()), (ids, (self.top,)), ("<f2", (self.top,)), ("<f2", ()))
        return tuple((np.dtype(kind), shape) for kind, shape in given)

    @property
    def parts(self) -> int:
        """Number of files."""
        return -(-self.examples // PART)

    def images(self, part: int) -> np.ndarray:
        """Returns the indices of the images of a part."""
        return np.arange(part * PART, min((part + 1) * PART, self.examples))


class Kept:
    """The kept views in one folder; it can be sent to worker processes.

    Attributes:
      specification: of the views.
      folder: where they are.
    """

    def __init__(self, parent: pathlib.Path, specification: Specification):
        """Looks whether the folder, `views-KEY` in `parent`, is what it says; writes nothing.

        Raises:
          UserError: if its description is damaged, or that of other views.
        """
        self.specification, self.folder = specification, parent / f"views-{specification.key}"
        self._arrays: dict[int, list[np.ndarray]] = {}
        file = self.folder / DESCRIPTION
        if not file.exists():
            return
        try:
            held = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: damaged, or cannot be read ({error}); remove the folder to compute it anew"
            ) from error
        if held != json.loads(json.dumps(specification.record())):
            raise UserError(f"{file} describes other views than those of this run; remove the folder")

    @property
    def key(self) -> str:
        """Stands for all that the views depend on."""
        return self.specification.key

    @property
    def crops(self) -> int:
        """Number of views of each image."""
        return self.specification.crops

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open files."""
        return {**self.__dict__, "_arrays": {}}

    def file(self, part: int) -> pathlib.Path:
        """Returns the path of a part, which need not be there."""
        return self.folder / f"part-{part:05d}-of-{self.specification.parts:05d}.views"

    def missing(self) -> list[int]:
        """Returns the numbers of the parts that are not there."""
        return [part for part in range(self.specification.parts) if not self.file(part).exists()]

    def damaged(self, parts: Iterable[int] | None = None) -> dict[int, str]:
        """Returns what is wrong with each part that is there and is not what was written; all bytes are read.

        Args:
          parts: to look at; all by default.
        """
        found = {}
        for part in range(self.specification.parts) if parts is None else parts:
            if self.file(part).exists():
                try:
                    self._load(part, whole=True)
                except UserError as error:
                    found[part] = str(error)
        return found

    def remove(self, part: int) -> None:
        """Removes a part, so that it is missing and can be written anew.

        Raises:
          UserError: if the system does not allow it.
        """
        self._arrays.pop(part, None)
        try:
            self.file(part).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.file(part)}: cannot be removed ({error.strerror or error})") from error

    def write(self, part: int, rows: Rows) -> None:
        """Writes a part, whole or not at all, over one that is there.

        Args:
          part: its number.
          rows: of all views of all its images, those of an image together; see `Specification.images`.

        Raises:
          UserError: if the file cannot be written.
        """
        from gkd_jax.reporting.files import write_bytes, write_json  # workers, who import this module, write nothing

        layout, images = self.specification.layout(), len(self.specification.images(part))
        wanted = [(images * self.crops, *shape) for _, shape in layout]
        if [array.shape for array in rows] != wanted:
            raise ValueError(f"part {part} has rows of the shapes {[array.shape for array in rows]}, not {wanted}")
        payload = b"".join(
            np.ascontiguousarray(array, kind).tobytes() for array, (kind, _) in zip(rows, layout, strict=True)
        )
        header = json.dumps(
            {
                "key": self.key,
                "part": part,
                "images": images,
                "bytes": len(payload),
                "sha256": hashlib.sha256(payload).hexdigest(),
            }
        ).encode()
        head = _MAGIC + struct.pack("<II", _VERSION, len(header)) + header
        self._arrays.pop(part, None)
        if not (self.folder / DESCRIPTION).exists():
            write_json(self.folder / DESCRIPTION, self.specification.record())
        write_bytes(self.file(part), head + bytes(-len(head) % _ALIGNED) + payload)

    def rows(self, index: Int[np.ndarray, " m"], crop: Int[np.ndarray, " m"]) -> Rows:
        """Returns views of images.

        Args:
          index: places in the training split.
          crop: number of the view of each, below `crops`.

        Raises:
          UserError: if a part is not there, or its header or length are not what was written; that each byte is, only
            `damaged` knows.
        """
        layout = self.specification.layout()
        found = [np.empty((len(index), *shape), kind) for kind, shape in layout]
        part, within = np.divmod(np.asarray(index), PART)
        for number in np.unique(part):
            here = part == number
            for out, array in zip(found, self._part(int(number)), strict=True):
                out[here] = array[within[here], np.asarray(crop)[here]]
        boxes, flip, ids, logs, rest = found
        return Rows(boxes.astype(np.int64), flip.astype(np.bool_), ids.astype(np.int32), logs, rest)

    def _part(self, part: int) -> list[np.ndarray]:
        if part not in self._arrays:
            self._arrays[part] = self._load(part, whole=False)
        return self._arrays[part]

    def _load(self, part: int, *, whole: bool) -> list[np.ndarray]:
        """Maps a part into memory; `whole` compares its checksum."""
        path = self.file(part)
        try:
            with path.open("rb") as file:
                magic, version, length = struct.unpack("<8sII", file.read(16))
                if magic != _MAGIC or version != _VERSION:
                    raise ValueError(f"it begins with {magic!r}, version {version}, not {_MAGIC!r}, version {_VERSION}")
                header = json.loads(file.read(length))
            start = 16 + length + -(16 + length) % _ALIGNED
            images, layout = len(self.specification.images(part)), self.specification.layout()
            sizes = [images * self.crops * math.prod(shape) * kind.itemsize for kind, shape in layout]
            expected = {"key": self.key, "part": part, "images": images, "bytes": sum(sizes)}
            if {name: header.get(name) for name in expected} != expected:
                raise ValueError(f"its header says {header}, and should say {expected}")
            if path.stat().st_size != start + sum(sizes):
                raise ValueError(f"it has {path.stat().st_size} bytes, not {start + sum(sizes)}")
            content = np.memmap(path, np.uint8, "r", start)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; the views of its images have not been computed yet") from error
        except (ValueError, struct.error, OSError) as error:
            raise UserError(f"{path}: damaged or cut short ({error}); remove it to compute its views anew") from error
        if whole and hashlib.sha256(content.data).hexdigest() != header.get("sha256"):
            raise UserError(f"{path}: damaged (its checksum is another); remove it to compute its views anew")
        parts = np.split(content, np.cumsum(sizes)[:-1])
        return [
            array.view(kind).reshape(images, self.crops, *shape)
            for array, (kind, shape) in zip(parts, layout, strict=True)
        ]


def compressed(
    logits: Float[np.ndarray, "... c"], top: int
) -> tuple[Int[np.ndarray, "... k"], Float16[np.ndarray, "... k"], Float16[np.ndarray, "..."]]:
    """Returns the likeliest classes, the logarithms of their probabilities, and that of what the others have together.

    Args:
      logits: finite.
      top: k, 1 to c.
    """
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    ids = np.argsort(-logs, axis=-1, kind="stable")
    others = np.take_along_axis(logs, ids[..., top:], -1)
    # From the others themselves: one minus the rest would cancel for a confident teacher
    with np.errstate(divide="ignore"):
        largest = others.max(-1, initial=_LOWEST)
        rest = largest + np.log(np.exp(others - largest[..., None]).sum(-1))
    kept = np.take_along_axis(logs, ids[..., :top], -1)
    return ids[..., :top], _half(kept), _half(rest)


def _half(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, _LOWEST).astype(np.float16)
