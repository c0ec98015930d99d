"""The losses of gkd_jax in PyTorch: each a mean over the batch, in float32 whatever the networks computed in."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Distillation of softened class probabilities, `T² KL(softmax(z_T / T) ‖ softmax(z_S / T))` of logits [b c]."""
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-8)


def _transport(cost: Tensor, epsilon: Tensor, iterations: int) -> Tensor:
    """Returns the entropic cost of p problems [p n n] of uniform masses, with Danskin's derivative in `cost`."""
    scaled = cost / epsilon
    log_mass = -math.log(cost.shape[1])
    with torch.no_grad():  # the potentials are constants to the derivative, so the loop leaves no graph
        fixed = scaled.detach()
        f = torch.full(cost.shape[:2], log_mass / 2, device=cost.device)
        for _ in range(iterations):
            g = log_mass - torch.logsumexp(f[:, :, None] - fixed, 1)
            f = log_mass - torch.logsumexp(g[:, None, :] - fixed, 2)
        dual = (f - log_mass).mean(1) + (g - log_mass).mean(1)
    plan = torch.exp(f[:, :, None] + g[:, None, :] - scaled)
    return epsilon * (dual + 1 - plan.sum((1, 2)))


def sinkhorn_divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    label_cost: float = 1.0,
    epsilon: float = 0.1,
    iterations: int = 10,
) -> Tensor:
    """Debiased entropic divergence between two batches of embeddings [b d], with `gkd_jax.losses.transport`'s cost.

    The three problems are solved as one batch. The student's own problem is derived in its first argument alone.
    """
    x, y = _normalise(student), _normalise(teacher)
    left, right = torch.stack([x, x, y]), torch.stack([y, x.detach(), y])
    squares = (left * left).sum(2)[:, :, None] + (right * right).sum(2)[:, None, :]
    cost = squares - 2 * torch.bmm(left, right.transpose(1, 2))
    cost = cost + label_cost * (labels[:, None] != labels[None, :])
    scale = epsilon * cost[0].detach().mean().clamp_min(1e-6)
    cross, own, theirs = _transport(cost, scale, iterations).unbind()
    return cross - (own - own.detach() / 2) - theirs / 2


def classifier_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    student_embedding: Tensor,
    teacher_embedding: Tensor,
) -> Tensor:
    """One minus the cosine of the gradients in the classifiers' weights, `1 - cos(p_S - y, p_T - y) cos(h_S, h_T)`.

    The plain difference p - y, and not gkd_jax's form without cancellation, which is more to compute.
    """
    targets = F.one_hot(labels, student_logits.shape[1])
    residuals = F.cosine_similarity(student_logits.softmax(1) - targets, teacher_logits.softmax(1) - targets, dim=1)
    return (1 - residuals * F.cosine_similarity(student_embedding, teacher_embedding, dim=1)).mean()


def input_gradient(logits: Tensor, labels: Tensor, images: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy and its gradient in the images, which `logits` were computed from."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(total, images, create_graph=create_graph)
    return total, gradient


def gradient_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between two gradients of each example, [b ...]."""
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1, eps=1e-30)).mean()
