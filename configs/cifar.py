"""Any teacher-student pair on CIFAR-10 or CIFAR-100, by any method, with the standard recipe.

  python -m gkd_jax.main --config configs/cifar.py:TEACHER,STUDENT,DATASET
  python -m gkd_jax.main --config configs/cifar.py:TEACHER,STUDENT,DATASET,METHOD
  python -m gkd_jax.main --config configs/cifar.py:resnet56,resnet20,cifar100 --workdir runs/r56-r20
  python -m gkd_jax.main --config configs/cifar.py:resnet32x4,resnet8x4,cifar100,dkd --compare
  python -m gkd_jax.main --config configs/cifar.py:resnet32x4,resnet8x4,cifar100,dkd+gompertz --mode=print
  python -m gkd_jax.main --config configs/cifar.py:resnet50,mobilenetv2_half,cifar10 --mode=shapes

METHOD is gompertz_cnn if it is left out; experiments/pairs.md lists all, with their settings and sources.
METHOD+gompertz gives any that has terms Gompertz weights, METHOD@tuned the settings that experiments.tune --keep chose.
A teacher that is not there yet (teacher.checkpoint) is trained first, in WORKDIR/teacher. The recipe (240 epochs, batch
64, drops at 150, 180 and 210, weight decay 5e-4; learning rate 0.05, or 0.01 for mobile and shuffle nets) is
RepDistiller's.

Expected result: the full recipe has not been run yet; experiments/results has short runs with their times.
"""

from gkd_jax import recipes
from gkd_jax.errors import UserError


def get_config(pair="resnet56,resnet20,cifar100"):
    given = pair.split(",")
    if len(given) not in (3, 4):
        raise UserError(
            f"TEACHER,STUDENT,DATASET or TEACHER,STUDENT,DATASET,METHOD stands behind the colon, not {pair!r}"
        )
    return recipes.standard(*[*given, "gompertz_cnn"][:4])
