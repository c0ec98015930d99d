"""What logits are worth beyond accuracy: top-k accuracy, calibration, likelihood, and agreement of two networks.

Everything is computed in float64 on the host, from logits [n, c] with n above 0.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

Logits = Float[np.ndarray, "n c"]
Labels = Int[np.ndarray, " n"]


def rate(logits: Logits | None, labels: Labels) -> dict[str, float | None]:
    """Returns "accuracy", "top5", "ece" and "nll" of logits, see the functions below; all None without logits."""
    if logits is None:
        return dict.fromkeys(("accuracy", "top5", "ece", "nll"))
    return {
        "accuracy": float(np.mean(classes(logits) == labels)),
        "top5": top_k_accuracy(logits, labels),
        "ece": calibration_error(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
    }


def classes(logits: Logits) -> Labels:
    """Returns the most probable class of each row; of equal ones the first."""
    return np.argmax(logits, -1)


def agreement(ours: Labels, theirs: Labels) -> float:
    """Returns the share of images of which two networks predict the same class, right or wrong.

    Args:
      ours: the class that one network predicts for each image.
      theirs: that which the other predicts.

    Source: "top-1 agreement" of Stanton et al., "Does Knowledge Distillation Really Work?", 2021, arXiv 2106.05945,
    section 3.
    """
    return float(np.mean(ours == theirs))


def top_k_accuracy(logits: Logits, labels: Labels, k: int = 5) -> float | None:
    """Returns the share of examples whose label is among the k most probable classes.

    Of equal logits the class that comes first counts as the more probable one, as in `classes`.

    Args:
      logits: [n, c].
      labels: classes as integers.
      k: of the most probable classes.

    Returns:
      A share from 0 to 1; None where there are no more than k classes, of which it would say nothing.
    """
    if logits.shape[1] <= k:
        return None
    own = np.take_along_axis(logits, labels[:, None], -1)
    first = np.arange(logits.shape[1]) < labels[:, None]
    before = np.sum((logits > own) | ((logits == own) & first), -1)
    # A comparison with NaN is false, and would make the label the most probable class
    return float(np.mean((before < k) & ~np.isnan(own[:, 0])))


def calibration_error(logits: Logits, labels: Labels, bins: int = 15) -> float:
    """Returns the expected calibration error: how far confidence is from accuracy, on average over the examples.

    ECE = Σ_m |B_m| / n · |acc(B_m) - conf(B_m)|, where B_m are the examples whose largest probability is in
    ((m - 1) / M, m / M], acc(B_m) is the share of them that is predicted correctly, and conf(B_m) the mean of their
    largest probabilities. It is a difference of shares: 0 for a network that is right as often as it says.

    Args:
      logits: [n, c].
      labels: classes as integers.
      bins: M.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599, equations 1 to 3, with their
    M = 15.
    """
    confidence = np.exp(_log_probabilities(logits).max(-1))
    right = classes(logits) == labels
    edges = np.arange(1, bins) / bins
    place = np.digitize(confidence, edges, right=True)
    # |B_m| stands before and below the sums, and goes away
    gaps = np.bincount(place, right - confidence, bins)
    return float(np.sum(np.abs(gaps)) / len(labels))


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Returns the mean of -log p(label) over the examples, in nats; log c for a network that knows nothing."""
    rows = np.arange(len(labels))
    return float(-np.mean(_log_probabilities(logits)[rows, labels]))


def _log_probabilities(logits: Logits) -> Any:
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
