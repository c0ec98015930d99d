"""A student taught by an assistant, which was taught by a teacher too large for it, on CIFAR-10 or CIFAR-100.

  python -m gkd_jax.main --config configs/cifar.py:TEACHER,ASSISTANT,DATASET,METHOD
  python -m gkd_jax.main --config configs/assistant.py:TEACHER,ASSISTANT,STUDENT,DATASET,METHOD

one after the other, as in

  python -m gkd_jax.main --config configs/cifar.py:resnet110,resnet20,cifar100,kd
  python -m gkd_jax.main --config configs/assistant.py:resnet110,resnet20,resnet8,cifar100,kd

and, for the student without an assistant,

  python -m gkd_jax.main --config configs/cifar.py:resnet110,resnet8,cifar100,kd

The assistant is the student of the first command, in that one's default workdir, runs/cifar-TEACHER-ASSISTANT-...; from
another place it is taken by --config.teacher.checkpoint=WORKDIR, as the next link of a longer chain is by
configs/cifar.py. METHOD is gompertz_cnn if it is left out of both. Where the first run has several seeds, its first
student is the assistant.

After Mirzadeh et al. (2020), arXiv 1902.03393, who distil by KD alone. The recipe is that of configs/cifar.py, not
theirs.

Expected result: not run yet.
"""

from gkd_jax import command, recipes
from gkd_jax.errors import UserError


def get_config(chain="resnet110,resnet20,resnet8,cifar100"):
    given = chain.split(",")
    if len(given) not in (4, 5):
        raise UserError(
            "TEACHER,ASSISTANT,STUDENT,DATASET or TEACHER,ASSISTANT,STUDENT,DATASET,METHOD stands behind the colon, "
            f"not {chain!r}"
        )
    teacher, assistant, student, *rest = given
    c = recipes.standard(assistant, student, *[*rest, "gompertz_cnn"][:2])
    c.teacher.checkpoint = f"runs/{command.run_name(','.join([f'cifar.py:{teacher}', assistant, *rest]))}"
    return c
