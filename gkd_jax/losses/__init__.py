"""Distillation losses: pure functions of arrays, and the Terms built on them."""

from gkd_jax.losses.balance import balanced
from gkd_jax.losses.contrastive import contrast
from gkd_jax.losses.correlation import dist
from gkd_jax.losses.curriculum import reverse
from gkd_jax.losses.decoupled import nontarget_kd, target_kd
from gkd_jax.losses.feature import attention_transfer, mean_square, neuron_selectivity
from gkd_jax.losses.gradient import class_logit, classifier_gradient, gradient_cosine, residual
from gkd_jax.losses.jacobian import normalised_difference, squared_difference
from gkd_jax.losses.logit import cross_entropy, kd, standardised
from gkd_jax.losses.lwm import attention_distance, grad_cam
from gkd_jax.losses.multi_level import mlkd
from gkd_jax.losses.overhaul import margin, partial_distance
from gkd_jax.losses.pairwise import cosines, squared_distances
from gkd_jax.losses.relation import (
    consecutive_correlation,
    kernel_correlation,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)
from gkd_jax.losses.reuse import map_error
from gkd_jax.losses.review import hierarchical_context
from gkd_jax.losses.sinkhorn import Divergence
from gkd_jax.losses.term import Term, create, names, options, register
from gkd_jax.losses.transport import class_cost, gaussian, sinkhorn_divergence, sinkhorn_logits, sinkhorn_tokens, sliced
from gkd_jax.losses.vid import negative_log_likelihood
from gkd_jax.losses.wasserstein import wasserstein_term
from gkd_jax.losses.wkd import target_loss, transport_between_others
from gkd_jax.losses.wkd_f import gaussian_cells

__all__ = [
    "Divergence",
    "Term",
    "attention_distance",
    "attention_transfer",
    "balanced",
    "class_cost",
    "class_logit",
    "classifier_gradient",
    "consecutive_correlation",
    "contrast",
    "cosines",
    "create",
    "cross_entropy",
    "dist",
    "gaussian",
    "gaussian_cells",
    "grad_cam",
    "gradient_cosine",
    "hierarchical_context",
    "kd",
    "kernel_correlation",
    "map_error",
    "margin",
    "mean_square",
    "mlkd",
    "names",
    "negative_log_likelihood",
    "neuron_selectivity",
    "nontarget_kd",
    "normalised_difference",
    "options",
    "partial_distance",
    "probabilistic_transfer",
    "register",
    "relational_angle",
    "relational_distance",
    "residual",
    "reverse",
    "similarity_preserving",
    "sinkhorn_divergence",
    "sinkhorn_logits",
    "sinkhorn_tokens",
    "sliced",
    "squared_difference",
    "squared_distances",
    "standardised",
    "target_kd",
    "target_loss",
    "transport_between_others",
    "wasserstein_term",
]
