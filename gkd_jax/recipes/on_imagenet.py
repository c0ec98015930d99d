"""The recipe of distillation on ImageNet: 100 epochs, and what the methods set of it."""

from ml_collections import ConfigDict

from gkd_jax import config, models, objective
from gkd_jax.recipes import logit, ours
from gkd_jax.recipes.registry import Recipe, apply, gompertz

SOURCE = "tfds:imagenet2012"
_STEM = "_imagenet_stem"
# (teacher, student) -> β of DKD, where it is not 0.5
_DKD_BETA = {("resnet50_imagenet_stem", "mobilenetv1"): 2.0}


def imagenet(teacher: str, student: str, method: str) -> ConfigDict:
    """Returns the configuration of a method on a pair of networks with ImageNet's stems.

    SGD with momentum 0.9, learning rate 0.1 for a batch of 256, divided by 10 after 30, 60 and 90 of 100 epochs, weight
    decay 1e-4; random-resized crops of 224 pixels and mirror images. It is torchvision's recipe (references of its
    first weights, 90 epochs there) and, over 100 epochs, that of CRD, ReviewKD, DKD and DIST; mdistiller
    (configs/imagenet) has 0.2 for a batch of 512 in most files.

    Args:
      teacher: its network; "resnet34" means resnet34_imagenet_stem.
      student: likewise.
      method: one of `METHODS`, or NAME+gompertz: the same with Gompertz weights for all terms but cross-entropy.

    Raises:
      UserError: if there is no such method or schedule.
    """
    c = config.default()
    c.data.source, c.data.image_size, c.data.pad = SOURCE, 224, 0
    c.teacher.model, c.student.model = _with_stem(teacher), _with_stem(student)
    for part in (c, c.teacher):
        part.epochs, part.batch_size = 100, 256
        part.optimizer = config.optimizer(0.1)
        part.optimizer.weight_decay, part.optimizer.drops = 1e-4, ("30%", "60%", "90%")
    apply(c, method, METHODS, "method on ImageNet")
    return c


def _with_stem(model: str) -> str:
    return model + _STEM if model + _STEM in models.names() else model


def kd(c: ConfigDict) -> None:
    """Sets half cross-entropy and half KD at temperature 1: mdistiller, configs/imagenet/*/kd.yaml."""
    c.objective.ce.weight = 0.5
    c.objective.terms.kd = objective.block("kd", weight=0.5, temperature=1.0)


def dkd(c: ConfigDict) -> None:
    """Sets DKD at temperature 1, α = 1, its weight rising over the first epoch.

    mdistiller, configs/imagenet/*/dkd.yaml: β is 0.5 for resnet34 to resnet18 and 2 for resnet50 to mobilenetv1; for
    other pairs 0.5, which is ours.
    """
    beta = _DKD_BETA.get(logit.pair(c), 0.5)
    rise = config.schedule("linear", init_value=0.0, end_value=1.0, begin="0ep", end="1ep")
    c.objective.terms.dkd = objective.block("dkd", alpha=1.0, beta=beta, temperature=1.0, schedule=rise)


def gompertz_kd(c: ConfigDict) -> None:
    """Sets `kd`, its term under a Gompertz weight."""
    kd(c)
    c.objective.terms.kd.schedule = gompertz()


def gompertz_cnn(c: ConfigDict) -> None:
    """Sets the project's own objective, with KD's weight and temperature as in `kd`; cross-entropy keeps 1."""
    ours.gompertz_cnn(c)
    c.objective.terms.kd.weight, c.objective.terms.kd.temperature = 0.5, 1.0


METHODS: dict[str, Recipe] = {
    "alone": logit.alone,
    "label_smoothing": logit.label_smoothing,
    "kd": kd,
    "dkd": dkd,
    "gompertz_kd": gompertz_kd,
    "gompertz_cnn": gompertz_cnn,
}
