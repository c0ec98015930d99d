"""A network on a split, in batches of one shape: its accuracy, counted on the device, or all its logits."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from gkd_jax import data
from gkd_jax.data import AnyDataset
from gkd_jax.data.stream import Streamed
from gkd_jax.outputs import Model, Variables
from gkd_jax.training.devices import mesh, one_program_at_a_time, put, replicated
from gkd_jax.training.streamed import StreamedEvaluator

_BATCH = 1000


class Evaluator:
    """Asks a network about the same images again and again."""

    def __init__(
        self,
        model: Model,
        images: np.ndarray,
        labels: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        devices: list[jax.Device],
    ):
        """Puts the images on the devices, shared out among them.

        Args:
          model: the network.
          images: uint8 [n, h, w, c], n above 0.
          labels: int32 [n].
          mean: of each channel.
          std: likewise.
          devices: to share each batch out among.
        """
        self._count, self.labels = len(images), labels
        batches = -(-len(images) // _BATCH)
        size = -(-len(images) // batches)
        size += -size % len(devices)
        missing = batches * size - len(images)
        # Padded with images of no class: one shape for all batches, and none of them counts.
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
        shared = mesh(devices)
        sharded = jax.sharding.NamedSharding(shared, jax.sharding.PartitionSpec("data"))
        self._replicated = replicated(shared)
        self._waits = one_program_at_a_time(devices)
        self._batches = [
            (put(images[i : i + size], sharded), put(labels[i : i + size], sharded))
            for i in range(0, len(images), size)
        ]

        def logits(variables: Variables, images: UInt8[Array, "b h w k"]) -> Float[Array, "b c"]:
            outputs, _ = model.apply(variables, data.normalise(images, mean, std), train=False)
            return outputs.logits

        def correct(variables: Variables, images: UInt8[Array, "b h w k"], labels: Int[Array, " b"]) -> Int[Array, ""]:
            return jnp.sum(jnp.argmax(logits(variables, images), -1) == labels)

        # Whole on every device: of several processes each then has all of it
        self._logits, self._correct = (jax.jit(f, out_shardings=self._replicated) for f in (logits, correct))

    def __call__(self, variables: Variables) -> float:
        """Returns the share of the images that the network with these variables classifies correctly."""
        variables = put(variables, self._replicated)  # those of a checkpoint are on one device
        counts = []
        for images, labels in self._batches:
            counts.append(self._correct(variables, images, labels))
            if self._waits:
                jax.block_until_ready(counts[-1])
        return int(sum(jax.device_get(counts))) / self._count

    def logits(self, variables: Variables) -> Float32[np.ndarray, "n c"]:
        """Returns what the network with these variables says about each image, in their order, on the host."""
        variables = put(variables, self._replicated)
        parts = [np.asarray(self._logits(variables, images), np.float32) for images, _ in self._batches]
        return np.concatenate(parts)[: self._count]


def of_split(
    model: Model, dataset: AnyDataset, split: str, devices: list[jax.Device], workers: int | str
) -> Evaluator | StreamedEvaluator | None:
    """Returns what asks a network about the images of "val" or "test"; None if there are none."""
    if not getattr(dataset.sizes, split):
        return None
    if isinstance(dataset, Streamed):
        return StreamedEvaluator(model, dataset, split, devices, workers)
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    return Evaluator(model, images, labels, dataset.mean, dataset.std, devices)
