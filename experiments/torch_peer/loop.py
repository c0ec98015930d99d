"""The training loop: what a distillation project in PyTorch does each step."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench.protocol import OBJECTIVES
from experiments.torch_peer import images as views
from experiments.torch_peer import losses
from experiments.torch_peer.networks import create

_BANK = 4096  # examples with given teacher outputs: input gradients of 50,000 would be 600 MB


class Unsupported(Exception):
    """PyTorch cannot run this combination; the message says why."""


class Setting(NamedTuple):
    """How PyTorch computes, as opposed to what.

    Attributes:
      channels_last: memory format of networks and images.
      compiled: `torch.compile`, in its default mode, of both networks' forward pass, the losses and the batch.
      autocast: bfloat16 in both networks' forward pass.
      graphs: what is compiled but the batch is replayed from CUDA graphs (`mode="reduce-overhead"`), which spares a
        GPU the wait for each kernel's launch.
    """

    channels_last: bool = False
    compiled: bool = False
    autocast: bool = False
    graphs: bool = False


class Seen(NamedTuple):
    """What the losses see of a network: logits [b c], embedding [b d] and perhaps the gradient in the images."""

    logits: Tensor
    embedding: Tensor
    gradient: Tensor | None = None


class Peer:
    """A teacher, a student and their data on one device, ready to train.

    Args:
      pair: names of teacher and student.
      objective: one of `OBJECTIVES`; cross-entropy is always part of it, and all weights are 1.
      batch: examples a step.
      num_classes: c.
      setting: how to compute.
      student_only: whether the teacher's outputs are looked up instead of computed. They are noise.
      images: uint8 [n h w 3].
      labels: integers [n].
      device: where all of it runs.

    Raises:
      Unsupported: if PyTorch cannot run the objective in this setting.
      ValueError: if network or objective is unknown, or there are fewer examples than a batch.
    """

    def __init__(
        self,
        pair: tuple[str, str],
        objective: str,
        batch: int,
        num_classes: int,
        setting: Setting,
        student_only: bool,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
        if setting.graphs and not (setting.compiled and device.type == "cuda"):
            raise Unsupported("CUDA graphs are torch.compile's, and need an NVIDIA GPU")
        if len(images) < batch:
            raise ValueError(f"{len(images)} images are fewer than a batch of {batch}")
        self.terms = OBJECTIVES[objective]
        if setting.compiled and "gm" in self.terms:
            raise Unsupported("torch.compile does not support the double backward pass that input gradients need")
        self.batch, self.setting, self.device = batch, setting, device
        self.padded = views.pad_images(images.to(device))
        self.labels = labels.to(device, torch.long)
        self.shift, self.scale = views.normalisation(device)
        self._rows = self._shuffled()

        teacher, student = (self._place(create(name, num_classes)) for name in pair)
        widths = student.fc.in_features, teacher.fc.in_features
        self.heads = self._place(_heads(self.terms, *widths))
        self.student: Any = student.train()
        self.teacher: Any = teacher.eval().requires_grad_(False)
        self.bank = self._noise(num_classes, widths[1]) if student_only else None
        self._load: Any = self._augment
        self._criterion: Any = self._loss
        if setting.compiled:
            mode = "reduce-overhead" if setting.graphs else None
            self.student, self.teacher = torch.compile(student, mode=mode), torch.compile(self.teacher, mode=mode)
            # Not the batch: a graph would copy what it is given, all images, at every step
            self._load, self._criterion = torch.compile(self._augment), torch.compile(self._loss, mode=mode)
        self.parameters = [*student.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def run(self, steps: int) -> float:
        """Trains for `steps` steps and returns the seconds until the device has finished them."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._wait()
        return time.perf_counter() - start

    def step(self) -> Tensor:
        """Trains on the next batch; returns its loss, which nothing has waited for."""
        if self.setting.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave is no longer needed
        index, view = next(self._rows)
        images, labels = self._load(self.padded, index, view), self.labels[index]
        matching = "gm" in self.terms
        if matching:
            images.requires_grad_()
        teacher = self._look_up(index) if self.bank is not None else self._teach(images, labels)

        with self._autocast():
            logits, embedding = self.student(images)
        gradient = None
        if matching:
            total, gradient = losses.input_gradient(logits.float(), labels, images, create_graph=True)
        loss = self._criterion(Seen(logits, embedding, gradient), teacher, labels, total if matching else None)

        self.optimizer.zero_grad()
        # The images ask for a gradient too, which nobody reads: named inputs spare the pass into them
        loss.backward(inputs=self.parameters if matching else None)
        self.optimizer.step()
        return loss.detach()

    def _teach(self, images: Tensor, labels: Tensor) -> Seen:
        if "gm" not in self.terms:
            with torch.no_grad(), self._autocast():
                return Seen(*self.teacher(images))
        with self._autocast():
            logits, embedding = self.teacher(images)
        _, gradient = losses.input_gradient(logits.float(), labels, images, create_graph=False)
        return Seen(logits.detach(), embedding.detach(), gradient)

    def _look_up(self, index: Tensor) -> Seen:
        assert self.bank is not None
        place = index % len(self.bank.logits)
        return Seen(*(None if field is None else field[place] for field in self.bank))

    def _loss(self, student: Seen, teacher: Seen, labels: Tensor, total: Tensor | None) -> Tensor:
        """Returns the objective; `total` is the summed cross-entropy where it is known already."""
        logits, embedding = student.logits.float(), student.embedding.float()
        target_logits, target = teacher.logits.float(), teacher.embedding.float()
        loss = F.cross_entropy(logits, labels) if total is None else total / len(labels)
        if "kd" in self.terms:
            loss = loss + losses.kd(logits, target_logits)
        if "w" in self.terms:
            loss = loss + losses.sinkhorn_divergence(self.heads["w"](embedding), target, labels)
        if "cg" in self.terms:
            ours = self.heads["cg"](embedding)
            loss = loss + losses.classifier_gradient(logits, target_logits, labels, ours, target)
        if "gm" in self.terms:
            assert student.gradient is not None
            assert teacher.gradient is not None
            loss = loss + losses.gradient_cosine(student.gradient, teacher.gradient)
        return loss

    def _augment(self, padded: Tensor, index: Tensor, view: Tensor) -> Tensor:
        crops = views.crop_flip(padded, index, view, self.setting.channels_last)
        return views.normalise(crops, self.shift, self.scale)

    def _shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (index, view) [b] of batch after batch, shuffled anew each epoch; the last partial one is dropped."""
        count = len(self.labels) // self.batch * self.batch
        while True:
            index = torch.randperm(len(self.labels), device=self.device)[:count].split(self.batch)
            view = torch.randint(views.VIEWS, (count,), device=self.device).split(self.batch)
            yield from zip(index, view, strict=True)

    def _noise(self, num_classes: int, width: int) -> Seen:
        count = min(len(self.labels), _BANK)
        logits = torch.randn(count, num_classes, device=self.device)
        embedding = torch.rand(count, width, device=self.device)
        if "gm" not in self.terms:
            return Seen(logits, embedding)
        _, height, width, channels = self.padded.shape
        shape = count, channels, height - 2 * views.PAD, width - 2 * views.PAD
        return Seen(logits, embedding, torch.randn(shape, device=self.device).to(memory_format=self._format))

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.setting.channels_last else torch.contiguous_format

    def _place(self, network: Any) -> Any:
        return network.to(device=self.device, memory_format=self._format)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.autocast)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _heads(terms: tuple[str, ...], student_width: int, teacher_width: int) -> nn.ModuleDict:
    """Returns the projection of the student's embedding for each term that compares embeddings."""
    if student_width == teacher_width:
        return nn.ModuleDict({term: nn.Identity() for term in ("w", "cg")})
    # Without a bias a direction of zero stays zero, as gkd_jax has it
    heads = {"w": nn.Linear(student_width, teacher_width), "cg": nn.Linear(student_width, teacher_width, bias=False)}
    return nn.ModuleDict({term: head for term, head in heads.items() if term in terms})
