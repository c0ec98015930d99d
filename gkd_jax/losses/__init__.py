"""Distillation losses: pure functions of arrays, and the Terms built on them."""

from gkd_jax.losses.balance import balanced
from gkd_jax.losses.gradient import classifier_gradient, gradient_cosine, residual
from gkd_jax.losses.logit import cross_entropy, kd
from gkd_jax.losses.sinkhorn import Divergence
from gkd_jax.losses.term import Term, create, names, options, register
from gkd_jax.losses.transport import (
    class_cost,
    gaussian,
    sinkhorn_divergence,
    sinkhorn_logits,
    sinkhorn_tokens,
    sliced,
)
from gkd_jax.losses.wasserstein import wasserstein_term

__all__ = [
    "Divergence",
    "Term",
    "balanced",
    "class_cost",
    "classifier_gradient",
    "create",
    "cross_entropy",
    "gaussian",
    "gradient_cosine",
    "kd",
    "names",
    "options",
    "register",
    "residual",
    "sinkhorn_divergence",
    "sinkhorn_logits",
    "sinkhorn_tokens",
    "sliced",
    "wasserstein_term",
]
