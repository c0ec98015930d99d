"""One network on CIFAR-10 or CIFAR-100 by cross-entropy alone: a teacher for many students, or a baseline.

  python -m gkd_jax.main --config configs/teacher.py:MODEL,DATASET
  python -m gkd_jax.main --config configs/teacher.py:resnet56,cifar100 --workdir runs/resnet56
  python -m gkd_jax.main --config configs/cifar.py:resnet56,resnet20,cifar100 --config.teacher.checkpoint=runs/resnet56

The recipe is RepDistiller's: 240 epochs, batch 64, learning rate 0.05 (0.01 for mobile and shuffle nets) with drops at
150, 180 and 210, weight decay 5e-4. Published for resnet56 on CIFAR-100: 72.34 % (RepDistiller's README).

Expected result: the full recipe has not been run yet; experiments/results has short runs with their times.
"""

from gkd_jax import config
from gkd_jax.errors import UserError


def get_config(which="resnet56,cifar100"):
    if which.count(",") != 1:
        raise UserError(f"MODEL,DATASET stands behind the colon, not {which!r}")
    model, dataset = which.split(",")
    c = config.default()
    c.data.source = dataset
    c.teacher.model = config.NO_TEACHER
    c.student.model = model
    c.optimizer = config.optimizer(config.standard_rate(model))
    return c
