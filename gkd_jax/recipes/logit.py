"""Recipes that compare logits, and the two without a teacher."""

from typing import Any

from ml_collections import ConfigDict

from gkd_jax import config, objective
from gkd_jax.recipes.registry import register, warm_up

# (teacher, student) -> β, where it is not 8, of mdistiller's configs/cifar100/dkd; resnet110 to resnet20 is ours
_DKD_BETA = {
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "mobilenetv2_half"): 6.0,
}
# (teacher, student) -> temperature, weight; where they are not 2 and 9
_KD_LS = {
    ("resnet110", "resnet20"): (4.0, 12.0),
    ("vgg13", "vgg8"): (3.0, 9.0),
    ("vgg13", "mobilenetv2_half"): (3.0, 9.0),
    ("resnet50", "mobilenetv2_half"): (3.0, 1.0),
}
# (teacher, student) -> temperature, weight of both parts, β before it; where they are not 2, 9 and 8
_DKD_LS = {
    ("wrn_40_2", "wrn_16_2"): (2.0, 12.0, 2.0),
    ("wrn_40_2", "wrn_40_1"): (2.0, 12.0, 2.0),
    ("resnet56", "resnet20"): (3.0, 18.0, 2.0),
    ("resnet110", "resnet20"): (2.0, 15.0, 2.0),
    ("resnet110", "resnet32"): (2.0, 15.0, 2.0),
    ("vgg13", "vgg8"): (2.0, 15.0, 2.0),
    ("vgg13", "mobilenetv2_half"): (3.0, 9.0, 2.0),
    ("resnet50", "mobilenetv2_half"): (2.0, 15.0, 2.0),
}


def pair(c: ConfigDict) -> tuple[str, str]:
    """Returns the names of teacher and student."""
    return c.teacher.model, c.student.model


@register("alone")
def alone(c: ConfigDict) -> None:
    """Cross-entropy alone, without a teacher: RepDistiller's train_teacher.py."""
    c.teacher.model = config.NO_TEACHER


@register("label_smoothing")
def label_smoothing(c: ConfigDict) -> None:
    """Cross-entropy with a tenth of each target spread over the classes, without a teacher.

    Szegedy et al. (2016), arXiv 1512.00567, section 7, whose ε it is; nothing is published of it on these pairs.
    """
    alone(c)
    c.objective.ce.label_smoothing = 0.1


@register("kd")
def kd(c: ConfigDict) -> None:
    """Hinton, Vinyals and Dean (2015), arXiv 1503.02531: RepDistiller, scripts/run_cifar_distill.sh (-r 0.1 -a 0.9)."""
    c.objective.ce.weight = 0.1
    c.objective.terms.kd = objective.block("kd", weight=0.9, temperature=4.0)


@register("dkd")
def dkd(c: ConfigDict) -> None:
    """Zhao et al. (2022), arXiv 2203.08679: mdistiller, configs/cifar100/dkd, weight rising over 20 epochs.

    mdistiller has no file for resnet50 to vgg8, which has its default β of 8; that of resnet110 to resnet20 is
    resnet110 to resnet32's. mdistiller's weight goes up once an epoch, ours at every step.
    """
    beta = _DKD_BETA.get(pair(c), 8.0)
    c.objective.terms.dkd = objective.block("dkd", alpha=1.0, beta=beta, temperature=4.0, schedule=warm_up())


@register("kd_ls")
def kd_ls(c: ConfigDict) -> None:
    """Sun et al. (2024), arXiv 2403.01427: kd with standardised logits; settings from the names of its logs.

    logit-standardization-KD, logs/KD: temperature and weight; pairs without a log have its default, 2 and 9.
    Cross-entropy keeps 0.1 (issue 8).
    """
    temperature, weight = _KD_LS.get(pair(c), (2.0, 9.0))
    c.objective.ce.weight = 0.1
    c.objective.terms.kd = objective.block("kd", weight=weight, temperature=temperature, standardize=True)


@register("dkd_ls")
def dkd_ls(c: ConfigDict) -> None:
    """Sun et al. (2024), arXiv 2403.01427: dkd with standardised logits; settings from the names of its logs.

    logit-standardization-KD, logs/DKD: the weight multiplies both parts (issue 13). Pairs without a log have 2, 9 and
    β = 8, which is ours.
    """
    temperature, weight, beta = _DKD_LS.get(pair(c), (2.0, 9.0, 8.0))
    c.objective.terms.dkd = objective.block(
        "dkd", weight=weight, alpha=1.0, beta=beta, temperature=temperature, standardize=True, schedule=warm_up()
    )


@register("dist")
def dist(c: ConfigDict) -> None:
    """Huang et al. (2022), arXiv 2205.10536: its CIFAR setting, β = γ = 1, τ = 4, all of it twice.

    The authors' strategies/distill/dist_cifar.yaml; TTM, whose numbers are compared with, leaves the weight out.
    """
    c.objective.terms.dist = objective.block("dist", weight=2.0, beta=1.0, gamma=1.0, temperature=4.0)


@register("ctkd")
def ctkd(c: ConfigDict) -> None:
    """Li et al. (2022), arXiv 2211.16231: CTKD, scripts/run_cifar_distill.sh, the global temperature.

    The strength of the reversed gradient goes from 0 to 1 by a cosine over 10 epochs: once an epoch there, at every
    step here.
    """
    c.objective.ce.weight = 0.1
    strength = config.schedule("cosine", init_value=0.0, end_value=1.0, begin="0ep", end="10ep")
    c.objective.terms.ctkd = objective.block("ctkd", weight=0.9, low=1.0, span=20.0, strength=strength)


def decay() -> ConfigDict:
    """Returns WKD's schedule: the whole weight until epoch 150 of 240, then down to 0 by a cosine."""
    return config.schedule("cosine", init_value=1.0, end_value=0.0, begin="62.5%", end="100%")


def wasserstein_of_logits(c: ConfigDict, weight: float, temperature: float) -> None:
    """Sets WKD's lines on the logits: the part of the target class keeps its weight of 1, the other decays."""
    given: dict[str, Any] = {"temperature": temperature, "sharpen": 1.0, "epsilon": 0.05, "iterations": 10}
    c.objective.terms.wkd_l = objective.block("wkd_l", weight=weight, target=0.0, others=1.0, schedule=decay(), **given)
    c.objective.terms.wkd_l_target = objective.block("wkd_l", target=1.0, others=0.0, **given)


@register("wkd_l")
def wkd_l(c: ConfigDict) -> None:
    """Lv et al. (2024), arXiv 2412.08139: its two published settings, others to their likeness (ours).

    600 at temperature 8 (resnet32x4 to resnet8x4), 200 at 6 for mobile and shuffle nets (wrn_40_2 to shufflenetv1).
    Class similarities are the cosine of the classifier's weights, the paper's alternative that needs no pass over the
    data; its numbers are for CKA.
    """
    wasserstein_of_logits(c, *((200.0, 6.0) if light(c) else (600.0, 8.0)))


def light(c: ConfigDict) -> bool:
    """Returns whether the student is a mobile or shuffle net."""
    return config.standard_rate(c.student.model) < config.standard_rate("resnet")
