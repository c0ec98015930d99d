"""How fast encoded images become crops on this machine, and how many cores feed one accelerator.

python -m experiments.stream_benchmark [--images 300] [--seconds 5] [--rounds 5] [--teacher RUN]

The images are synthetic: smooth noise whose spectrum falls with frequency as a photograph's does, 500 x 375 pixels,
JPEG of quality 90 with an amplitude that makes them about 110 kB, ImageNet's average. What is measured of them holds
for photographs as far as decoding depends on pixels and bytes, which is nearly all.

It prints tables in Markdown: decoding, cutting and scaling by one thread, by its own processor time and by the clock;
the same through grain, by threads and by worker processes; the difference that reduced decoding makes; cores for given
rates; and, with a finished run on CIFAR as `--teacher`, what is lost where but the likeliest classes are kept.

  --images   synthetic images
  --seconds  of each measurement
  --rounds   of each measurement; the median is told, with lowest and highest
  --teacher  directory of a finished run whose logits are taken for the loss of kept views
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gkd_jax.arguments import Parser, status
from gkd_jax.data.stream import Feed, draws, jpeg
from gkd_jax.data.stream.draws import Box
from gkd_jax.data.stream.kept import Specification
from gkd_jax.data.stream.pieces import Training
from gkd_jax.data.stream.records import Record
from gkd_jax.processor import processor

SIZE, KEPT = 224, 30
_ALL = "all of it, for training"
_FALL = 1.0  # of the spectrum's amplitude with frequency: photographs have about 1
_CONTRAST = 44.0  # grey levels, so that a file of 500 x 375 takes 110 kB
_IMAGENET = 1_281_167
_SURER = 3.0  # factor of the logits that makes of a network trained for minutes one that is sure of itself

# What others measured, images a second on one accelerator: who, what, images a second
RATES = (
    ("resnet34 to resnet18 by KD, one of three GPUs of 2020 (torchdistill's log)", 530),
    ("the same, one V100 (Simple-Recipe-Distillation, issue 1)", 740),
    ("resnet50 alone, one of eight A100 (ffcv)", 3_000),
    ("resnet18 alone, one A100 (ffcv)", 10_000),
)


class Rate(NamedTuple):
    """Images a second: the median of some rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float


def photograph(rng: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """Returns an encoded image of smooth noise."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(x, y), 1 / max(height, width)) ** _FALL

    def noise() -> np.ndarray:
        field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * fall, (height, width))
        return (field - field.mean()) / field.std()

    grey = noise()
    channels = [128 + _CONTRAST * (0.95 * grey + 0.31 * noise()) for _ in range(3)]  # colours go together, as outdoors
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measured(work: Callable[[], int], seconds: float, rounds: int) -> tuple[Rate, Rate]:
    """Returns the rates of `work`, which returns how many images it did: by the clock, by this thread's own time."""
    found = []
    for _ in range(rounds):
        began, own, done = time.perf_counter(), time.thread_time(), 0
        while time.perf_counter() - began < seconds:
            done += work()
        found.append((done / (time.perf_counter() - began), done / (time.thread_time() - own)))
    clock, thread = (Rate(float(np.median(each)), min(each), max(each)) for each in zip(*found, strict=True))
    return clock, thread


class Held:
    """Encoded images in memory, as `stream.records.Records` gives them; it can be sent to worker processes."""

    def __init__(self, images: Sequence[bytes]):
        """Takes the images."""
        self._images = images

    def __len__(self) -> int:
        """Returns the number of images, as often as an epoch of ImageNet would."""
        return _IMAGENET

    def __getitem__(self, row: int) -> Record:
        """Returns one of them."""
        return Record(self._images[row % len(self._images)], row % 1000)

    def place(self, row: int) -> str:
        """Returns its number."""
        return f"image {row}"


def one_thread(images: Sequence[bytes], large: Sequence[bytes], seconds: float, rounds: int) -> list[tuple[str, ...]]:
    """Measures the parts of the work in this thread."""

    def each(encoded: Sequence[bytes], work: Callable[[bytes, int], Any], count: int = 1) -> Callable[[], int]:
        places = iter(range(10**9))

        def do() -> int:
            place = next(places)
            work(encoded[place % len(encoded)], place)
            return count

        return do

    def box(encoded: bytes, place: int) -> Box:
        return draws.view(0, 0, place, *jpeg.size_of(encoded)).box

    decoded = [jpeg.cut(encoded, [Box(0, 0, *jpeg.size_of(encoded))], SIZE) for encoded in images[:1]]
    assert decoded[0][0].shape == (SIZE, SIZE, 3)
    pixels = [Image.open(io.BytesIO(encoded)).convert("RGB") for encoded in images[:50]]

    def cut_only(image: Image.Image, place: int) -> None:
        at = draws.view(0, 0, place, image.height, image.width).box
        crop = image.crop((at.left, at.top, at.left + at.width, at.top + at.height))
        np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    never = float("inf")
    trials: list[tuple[str, Callable[[], int]]] = [
        ("box and mirror image are drawn", each(images, lambda e, i: draws.view(0, 0, i, 375, 500))),
        ("decoded whole", each(images, lambda e, i: Image.open(io.BytesIO(e)).convert("RGB"))),
        ("cut and scaled, of decoded pixels", each(pixels, cut_only)),  # type: ignore[arg-type]
        (_ALL, each(images, lambda e, i: jpeg.cut(e, [box(e, i)], SIZE))),
        ("the same, never reduced", each(images, lambda e, i: jpeg.cut(e, [box(e, i)], SIZE, never))),
        (
            "the same, reduced where a pixel is left for each",
            each(images, lambda e, i: jpeg.cut(e, [box(e, i)], SIZE, 1.0)),
        ),
        ("for evaluation", each(images, lambda e, i: jpeg.centre(e, SIZE))),
        (
            f"{KEPT} views of an image, for the teacher (views)",
            each(
                images, lambda e, i: jpeg.cut(e, [draws.view(0, k, i, 375, 500).box for k in range(KEPT)], SIZE), KEPT
            ),
        ),
        ("2000 x 1500, for training", each(large, lambda e, i: jpeg.cut(e, [box(e, i)], SIZE))),
        ("2000 x 1500, never reduced", each(large, lambda e, i: jpeg.cut(e, [box(e, i)], SIZE, never))),
        ("2000 x 1500, for evaluation", each(large, lambda e, i: jpeg.centre(e, SIZE))),
        ("2000 x 1500, for evaluation, never reduced", each(large, lambda e, i: jpeg.centre(e, SIZE, never))),
    ]
    rows: list[tuple[str, ...]] = []
    for name, work in trials:
        clock, own = measured(work, seconds, rounds)
        rows.append((name, *_told(own), f"{1e3 / own.median:.2f}", *_told(clock)))
    return rows


def through_grain(images: Sequence[bytes], workers: int, seconds: float, rounds: int) -> Rate:
    """Measures batches of 128 through the whole pipeline, once its processes are at work."""
    pieces = Training(
        Held(images),  # type: ignore[arg-type]
        np.arange(_IMAGENET),
        seed=0,
        epochs=1,
        batch_size=128,
        size=SIZE,
    )
    with Feed(pieces, workers=workers) as feed:
        for _ in range(6):  # the processes start, and what waits in their queues is taken
            next(feed)
        return measured(lambda: len(next(feed)["labels"]), seconds, rounds)[0]


def differences(images: Sequence[bytes], large: Sequence[bytes]) -> Iterator[tuple[str, ...]]:
    """Yields what reduced decoding changes, for images of both sizes and both gaps."""
    for name, encoded in (("500 x 375", images), ("2000 x 1500", large)):
        for gap in (2.0, 1.0):
            reduced, found = 0, []
            for place, image in enumerate(encoded):
                box = draws.view(0, 0, place, *jpeg.size_of(image)).box
                if jpeg.reduction(min(box.height, box.width), SIZE, gap) == 1:
                    continue
                reduced += 1
                ours, plain = (jpeg.cut(image, [box], SIZE, g)[0].astype(float) for g in (gap, float("inf")))
                found.append((np.abs(ours - plain).mean(), np.square(ours - plain).mean()))
            mean, square = np.mean(found, 0) if found else (0.0, 0.0)
            psnr = f"{10 * np.log10(255**2 / square):.1f}" if square else "-"
            yield name, f"{gap:g}", f"{100 * reduced / len(encoded):.0f}", f"{mean:.2f}" if found else "-", psnr


def fidelity(teacher: str, scale: float, count: int = 5000) -> Iterator[tuple[str, ...]]:
    """Yields what is lost of a CIFAR teacher by keeping its k likeliest classes, at temperatures 1 and 4.

    Args:
      teacher: directory of its run.
      scale: of its logits: more than 1 for a surer teacher than it is.
      count: training images.
    """
    import jax
    import jax.numpy as jnp

    from gkd_jax import data
    from gkd_jax.data.stream.device import teacher_logits
    from gkd_jax.data.stream.kept import compressed
    from gkd_jax.losses.logit import kd
    from gkd_jax.training.finished import load

    network = load(teacher)
    dataset = data.load(**network.config["data"])
    padded = jnp.asarray(data.pad_images(dataset.train_images[:count], dataset.pad))

    @jax.jit
    def answers(index: Any, view: Any) -> Any:
        crops = data.crop_flip(padded, index, view, pad=dataset.pad, flip=dataset.flip)
        images = data.normalise(crops, dataset.mean, dataset.std)
        return network.model.apply(network.variables, images, train=False)[0].logits

    def logits(seed: int) -> np.ndarray:
        view = np.random.default_rng(seed).integers(0, dataset.num_views, count)
        parts = np.array_split(np.arange(count), count // 500)
        return scale * np.concatenate([np.asarray(answers(part, view[part])) for part in parts])

    theirs, students = logits(0), {"another view": logits(1), "untrained": np.zeros((count, dataset.num_classes))}
    accuracy = np.mean(theirs.argmax(-1) == dataset.train_labels[:count])
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(theirs)))
    sys.stdout.write(
        f"\nTeacher: {network.config['student']['model']}, logits x {scale:g}, {100 * accuracy:.1f} % of these images "
        f"right, mean probability of the likeliest class {probabilities.max(-1).mean():.2f}\n\n"
    )
    for top in (5, 10, 20, 50, dataset.num_classes):
        ids, logs, rest = compressed(theirs, top)
        mass = 1 - np.take_along_axis(probabilities, ids, -1).sum(-1)
        kept = teacher_logits(jnp.asarray(ids, jnp.int32), jnp.asarray(logs), jnp.asarray(rest), dataset.num_classes)
        for temperature in (1.0, 4.0):
            told = [str(top), f"{temperature:g}", f"{100 * mass.mean():.2f}", f"{100 * np.quantile(mass, 0.95):.2f}"]
            for student in students.values():
                both = []
                for taught in (jnp.asarray(theirs), kept):
                    loss = lambda s, t=taught, at=temperature: jnp.mean(kd(s, t, at))  # noqa: E731
                    value, slope = jax.value_and_grad(loss)(jnp.asarray(student, jnp.float32))
                    both.append((float(value), np.asarray(slope)))
                (full, slope), (less, other) = both
                error = np.linalg.norm(other - slope) / np.linalg.norm(slope)
                told += [f"{full:.4f}", f"{less - full:+.4f}", f"{100 * error:.1f}"]
            yield tuple(told)


def _told(rate: Rate) -> tuple[str, str]:
    return f"{rate.median:,.0f}", f"{rate.lowest:,.0f} to {rate.highest:,.0f}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    for row in (head, ("---",) * len(head), *rows):
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    sys.stdout.write("\n")


def sizes() -> list[tuple[str, ...]]:
    """Returns what kept views take on disk."""
    rows = []
    for top in (5, 10, 20, 50):
        found = [f"{top}", f"{11 + 4 * top}"]
        for crops in (10, 30, 100):
            given = Specification(examples=_IMAGENET, classes=1000, crops=crops, top=top, size=SIZE)
            found.append(f"{given.nbytes / 1e9:.1f}")
        rows.append(tuple(found))
    return rows


def run(count: int, seconds: float, rounds: int, teacher: str | None) -> str:
    """Measures everything, and prints it as it becomes known; returns a closing word."""
    rng, cores = np.random.default_rng(0), os.cpu_count() or 1
    images = [photograph(rng) for _ in range(count)]
    large = [photograph(rng, 1500, 2000) for _ in range(max(count // 20, 4))]
    kilobytes = np.array([len(image) for image in images]) / 1e3
    sys.stdout.write(
        f"{processor()}; Pillow {Image.__version__}; load of the machine before: {os.getloadavg()[0]:.2f}\n"
        f"{count} images of 500 x 375: {kilobytes.mean():.0f} kB ({kilobytes.min():.0f} to {kilobytes.max():.0f}); "
        f"{len(large)} of 2000 x 1500: {np.mean([len(i) for i in large]) / 1e3:,.0f} kB\n\n"
    )
    head: tuple[str, ...] = ("one thread", "images a core-second", "lowest to highest", "ms of it an image")
    alone = one_thread(images, large, seconds, rounds)
    _table((*head, "a second by the clock", "lowest to highest"), alone)
    core = float(next(row[1] for row in alone if row[0] == _ALL).replace(",", ""))
    _table(("images", "gap", "reduced (%)", "mean difference (levels)", "PSNR (dB)"), list(differences(images, large)))
    rows = []
    for workers in (0, 1, 2):
        rate = through_grain(images, workers, seconds, rounds)
        used = min(workers or cores, cores)
        name = f"{workers} processes" if workers else f"threads of this process, {cores}"
        rows.append((name, *_told(rate), f"{rate.median / used:,.0f}"))
    _table(("through grain, batches of 128", "images a second", "lowest to highest", "a second and core"), rows)
    _table(
        ("rate of one accelerator, published", "images a second", "cores that feed it"),
        [(name, f"{rate:,}", f"{rate / core:.1f}") for name, rate in RATES],
    )
    _table(("k", "bytes a view", *(f"GB of ImageNet, K = {crops}" for crops in (10, 30, 100))), sizes())
    if teacher:
        head = ("k", "temperature", "mass lost (%)", "of 95 % of views, below (%)")
        for student in ("student = teacher on another view", "untrained student"):
            head += (f"{student}: loss", "difference", "gradient's error (%)")
        for scale in (1.0, _SURER):
            rows = list(fidelity(teacher, scale))
            _table(head, rows)
    return f"load of the machine after: {os.getloadavg()[0]:.2f}"


def main(argv: Sequence[str]) -> int:
    """Runs the command with these arguments, the program's name first; returns its exit status."""
    parser = Parser("python -m experiments.stream_benchmark", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher")

    def command() -> str:
        given = parser.parse_args(argv[1:])
        return run(given.images, given.seconds, given.rounds, given.teacher)

    return status(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
