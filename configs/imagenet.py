"""A teacher-student pair on ImageNet, streamed, by the 100-epoch recipe.

  python -m gkd_jax.main --config configs/imagenet.py:TEACHER,STUDENT
  python -m gkd_jax.main --config configs/imagenet.py:TEACHER,STUDENT,METHOD
  python -m gkd_jax.main --config configs/imagenet.py:resnet34,resnet18 --workdir runs/r34-r18
  python -m gkd_jax.main --config configs/imagenet.py:resnet50,mobilenetv1,kd --workdir runs/r50-mv1
  python -m gkd_jax.main --config configs/imagenet.py:resnet34,resnet18 --config.teacher.cache=views:30

These are the field's two pairs. METHOD is gompertz_kd if it is left out: KD under a Gompertz weight, for which views
of the teacher can be kept (teacher.cache). alone, label_smoothing, kd, dkd and gompertz_cnn are the others;
METHOD+gompertz puts one under that weight. The images are those of tfds:imagenet2012, prepared as array_record in
--config.data.data_dir (TFDS tells how; it needs the files of image-net.org and TensorFlow, once). The teacher is
torchvision's or timm's,

  python -m gkd_jax.import_weights resnet34.safetensors --model resnet34_imagenet_stem --dataset tfds:imagenet2012 ...

given as --config.teacher.checkpoint=DIR; without one it is trained first. The recipe: SGD, momentum 0.9, learning rate
0.1 for a batch of 256, divided by 10 at epochs 30, 60 and 90, weight decay 1e-4.

Expected result: not run by this project, for want of a machine. Published, top-1 in %: by kd 71.03 and 70.50, by dkd
71.70 and 72.05 for the two pairs (mdistiller's README; best or last epoch is not said); torchvision's weights
(IMAGENET1K_V1) have 73.31 (resnet34), 69.76 (resnet18) and 76.13 (resnet50).
Time: unknown. experiments/results/stream.md has the cores that feed one accelerator.
"""

from gkd_jax import recipes
from gkd_jax.errors import UserError


def get_config(pair="resnet34,resnet18"):
    given = pair.split(",")
    if len(given) not in (2, 3):
        raise UserError(f"TEACHER,STUDENT or TEACHER,STUDENT,METHOD stands behind the colon, not {pair!r}")
    return recipes.imagenet(*[*given, "gompertz_kd"][:3])
