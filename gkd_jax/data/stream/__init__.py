"""Data larger than memory: encoded images read, cut and scaled by worker processes, batch by batch."""

from gkd_jax.data.stream.device import ahead, mirrored, put, seen, soft_targets, teacher_logits
from gkd_jax.data.stream.feed import Feed, centre_feed, train_feed, workers_of
from gkd_jax.data.stream.fill import fill
from gkd_jax.data.stream.kept import Kept, Rows, Specification
from gkd_jax.data.stream.pieces import NO_LABEL, Share
from gkd_jax.data.stream.source import Streamed, open_streamed

__all__ = [
    "NO_LABEL",
    "Feed",
    "Kept",
    "Rows",
    "Share",
    "Specification",
    "Streamed",
    "ahead",
    "centre_feed",
    "fill",
    "mirrored",
    "open_streamed",
    "put",
    "seen",
    "soft_targets",
    "teacher_logits",
    "train_feed",
    "workers_of",
]
