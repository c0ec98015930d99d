"""Any teacher-student pair on CIFAR-10 or CIFAR-100, with the full Gompertz-CNN objective and the standard recipe.

  python -m gkd_jax.main --config configs/cifar.py:TEACHER,STUDENT,DATASET
  python -m gkd_jax.main --config configs/cifar.py:resnet56,resnet20,cifar100 --workdir runs/r56-r20
  python -m gkd_jax.main --config configs/cifar.py:resnet50,mobilenetv2_half,cifar10 --mode=shapes

A teacher that is not there yet (teacher.checkpoint) is trained first, in WORKDIR/teacher. The recipe (240 epochs, batch
64, drops at 150, 180 and 210, weight decay 5e-4; learning rate 0.05, or 0.01 for mobile and shuffle nets) is that of
RepDistiller, and so are the temperature and the weight of KD; but cross-entropy, which it weighs by 0.1, keeps the
weight 1, and the weights of the other two terms are ours.

Expected result: the full recipe has not been run yet; experiments/results has short runs with their times.
"""

from gkd_jax import config, objective
from gkd_jax.errors import UserError


def get_config(pair="resnet56,resnet20,cifar100"):
    if pair.count(",") != 2:
        raise UserError(f"TEACHER,STUDENT,DATASET stands behind the colon, not {pair!r}")
    teacher, student, dataset = pair.split(",")
    c = config.default()
    c.data.source = dataset
    c.teacher.model, c.student.model = teacher, student
    c.teacher.optimizer = config.optimizer(config.standard_rate(teacher))
    c.optimizer = config.optimizer(config.standard_rate(student))

    rise = config.schedule("gompertz", inflection=0.3, rate=10.0)
    c.objective.terms.kd = objective.block("kd", weight=0.9, temperature=4.0, schedule=rise)
    c.objective.terms.wasserstein = objective.block("wasserstein", weight=1.0, kind="sinkhorn", schedule=rise)
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="input", schedule=rise)
    return c
