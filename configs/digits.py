"""A student distilled by the full Gompertz-CNN objective on scikit-learn's handwritten digits, without a download.

  python -m gkd_jax.main --config configs/digits.py --workdir runs/digits

Expected result, test accuracy in % on 359 images, CPU: teacher 98.1; student alone 86.1, distilled 88.3. The seeds 1
and 2 (--config.seed) give 73.3 and 74.7 alone, 77.7 and 80.5 distilled: a demonstration, no benchmark.
Time: 60 to 120 seconds on two CPU cores, a third of it compilation, installation apart.
"""

from gkd_jax import config, objective


def get_config():
    c = config.default()
    c.epochs = 10
    c.batch_size = 64
    c.compare_alone = True

    c.data.source = "digits"
    c.data.val_fraction = 0.1
    c.data.pad = 1
    c.data.flip = False  # a mirrored digit is another sign

    c.teacher.model = "resnet20"
    c.teacher.epochs = 12
    c.student.model = "resnet8_eighth"  # 1,384 parameters

    rise = config.schedule("gompertz", inflection=0.3, rate=10.0)
    c.objective.terms.kd = objective.block("kd", weight=1.0, temperature=4.0, schedule=rise)
    c.objective.terms.wasserstein = objective.block("wasserstein", weight=1.0, kind="sinkhorn", schedule=rise)
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="input", schedule=rise)
    return c
