"""Networks with ImageNet's stem on 32x32 images beside those with CIFAR's: where large gains are plausible.

  python -m experiments.grid --grid experiments/grids/weak_stem.py --out runs/weak_stem

ImageNet's stem (a 7x7 convolution of stride 2 and a pooling of stride 2, or what the network has for them) leaves 8x8
positions of a 32x32 image: such a network is weak for a reason that a better teacher may make up for. "weak" has that
stem in teacher and student, "strong" in neither, "weak student" in the student alone. Standard recipe, seeds 0 to 2.
"""

from experiments.grid import build
from experiments.grid.cells import Grid

METHODS = ("alone", "kd", "gompertz_cnn")
STUDENTS = ("mobilenetv2", "resnet18")
WEAK = "_imagenet_stem"


def get_grid():
    """Returns the grid."""
    cells = []
    for dataset in ("cifar100", "cifar10"):
        for student in STUDENTS:
            stems = {"strong": ("", ""), "weak": (WEAK, WEAK), "weak student": ("", WEAK)}
            for stem, (of_teacher, of_student) in stems.items():
                teacher = f"resnet50{of_teacher}"
                for method in METHODS:
                    if method == "alone" and stem == "weak student":
                        continue  # as under "weak"
                    c = build.standard((teacher, f"{student}{of_student}"), dataset, method)
                    labels = {"pair": f"resnet50 to {student}", "dataset": dataset, "stem": stem, "method": method}
                    name = f"{dataset}-resnet50-{student}-{stem.replace(' ', '_')}-{method}"
                    cells.append(build.cell(name, c, **labels))
    title = f"Weak and strong stems on both CIFARs, {build.said(cells[0].config)}"
    return Grid(title, tuple(cells), {"method": "kd"}, ("pair", "dataset", "stem"))
