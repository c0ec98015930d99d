"""Where the images of a run are kept: on the devices, in the host's memory, or on disk, to be streamed."""

from typing import NamedTuple

from gkd_jax.errors import UserError

_OF_DEVICE = 0.5  # of its free memory: the rest is for the networks, a cache, and what a step computes
_OF_HOST = 0.8  # of what is available: the rest is for results and other programs


class Residency(NamedTuple):
    """A choice, and its reason.

    Attributes:
      where: "device", "host" or "stream".
      reason: for the log.
    """

    where: str
    reason: str


def choose(
    asked: str,
    *,
    image_size: int | None,
    nbytes: int = 0,
    device_free: int | None = None,
    host_free: int = 0,
) -> Residency:
    """Returns where the images of a run are kept.

    A set of which random-resized crops are wanted (`image_size`) is streamed: the crops are cut from whole images of
    many sizes, whose pixels no memory holds. All other sets are decoded once; each device then holds all of them, or
    else the host does and sends every batch.

    Args:
      asked: `data.residency`, of `gkd_jax.config.RESIDENCIES`; `config.check` sees to it that it suits `image_size`.
      image_size: `data.image_size`, the side of the crops; None where images are seen as they are.
      nbytes: of the decoded training images with their borders.
      device_free: free bytes of each device; None where its memory is the host's.
      host_free: bytes of the host's memory that are available.

    Raises:
      UserError: if there is no room anywhere, or not where they are asked to be.
    """
    if image_size is not None:
        return Residency("stream", f"crops of {image_size} x {image_size} pixels are cut from the encoded images")
    memory, free, share = ("the device's memory", device_free, _OF_DEVICE)
    if device_free is None:
        memory, free, share = ("the host's memory, which the device shares,", host_free, _OF_HOST)
    room = int(share * (free or 0))
    facts = (
        f"the images take {_gb(nbytes)}; of {memory} {_gb(free or 0)} are free, and they may take {share:.0%} of that"
    )
    on_host = f"of the host's {_gb(host_free)} that are free they may take {_OF_HOST:.0%}"
    if asked != "host" and nbytes <= room:
        return Residency("device", facts)
    if asked != "device" and nbytes <= _OF_HOST * host_free:
        return Residency("host", on_host if asked == "host" else f"{facts}; {on_host}")
    raise UserError(
        f"data.residency is {asked!r}: {facts}, and {on_host}; data.num_train takes fewer of them, and with "
        "data.image_size a set of TFDS is streamed"
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.2f} GB"
