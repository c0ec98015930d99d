"""The table of pairs and methods says what is run."""

import pytest

from experiments import pairs
from gkd_jax import losses, recipes

NAMES = [
    "alone", "label_smoothing", "kd", "dkd", "kd_ls", "dkd_ls", "dist", "ctkd", "wkd_l", "fitnet", "at", "vid", "nst",
    "reviewkd", "ofd", "wkd_f", "wkd_lf", "simkd", "input_grad", "feature_grad", "classifier_grad", "jacobian",
    "sobolev", "lwm", "mlkd", "mlkd_ls", "gompertz_kd", "gompertz_cnn", "sp", "rkd", "pkt", "cc", "crd",
]  # fmt: skip

ROWS = {  # cross-entropy, terms, what is otherwise, on resnet32x4 to resnet8x4
    "alone": ("1", "none", ""),
    "label_smoothing": ("1: label_smoothing 0.1", "none", ""),
    "kd": ("0.1", "kd 0.9: temperature 4, standardize False", ""),
    "dkd": ("1", "dkd 1: alpha 1, beta 8, temperature 4, standardize False, linear 0 1 0ep 20ep", ""),
    "ctkd": ("0.1", "ctkd 0.9: low 1, span 20, strength cosine 0 1 0ep 10ep, standardize False", ""),
    "at": ("1", "at 1000: stages all, power 2", ""),
    "simkd": ("0", "simkd 1", "reuse_classifier True"),
    "mlkd": (
        "0.1",
        "ce_strong (ce) 0.1: view strong; "
        "mlkd_strong (mlkd) 0.9: view strong, temperature 4, others 3/5, instance 1, batch 0, classes 0, "
        "standardize False, halve False; "
        "mlkd_weak (mlkd) 0.9: temperature 4, others 2/3/5/6, instance 1, batch 1, classes 1, standardize False, "
        "halve True; "
        "mlkd_weak_rest (mlkd) 0.9: temperature 2, others 6, instance 1, batch 0, classes 0, standardize False, "
        "halve False",
        "epochs 480, drops 150ep/180ep/210ep, learning_rate 0.025",
    ),
    "gompertz_kd": ("0.1", "kd 0.9: temperature 4, standardize False, gompertz 1 0.3 10", ""),
    "crd": ("1", "crd 0.8: dim 128, negatives 16384, temperature 0.07, momentum 0.5", ""),
}


@pytest.fixture(scope="module")
def text():
    return pairs.text()


@pytest.fixture(scope="module")
def rows(text):
    table = text.partition("## Methods")[2].partition("## Where")[0]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines() if line[:2] == "| "]
    return {name: rest for name, *rest in cells[1:]}


def test_the_file_is_what_the_configurations_say(text):
    assert pairs.FILE.read_text() == text, "run python -m experiments.pairs"


def test_every_method_has_a_row(rows):
    assert list(rows) == NAMES
    assert set(NAMES) == {*recipes.names()}


@pytest.mark.parametrize("method", ROWS)
def test_a_row_has_all_settings(rows, method):
    assert tuple(rows[method][:3]) == ROWS[method]


@pytest.mark.parametrize("method", NAMES)
def test_no_option_of_a_term_is_left_out(rows, method):
    c = recipes.standard("resnet32x4", "resnet8x4", "cifar100", method)
    told = dict.fromkeys(c.objective.terms, "")
    for part in rows[method][1].split("; ") if told else ():
        told[part.split()[0]] = part
    for label, line in c.objective.terms.items():
        names = set(losses.options(line.term)) - ({"label_smoothing"} if line.term == "ce" else set())
        assert all(f" {name} " in told[label] for name in names), label


def test_a_pair_of_another_weight(text):
    """Weights that the published scripts have by pair, ReviewKD's for one."""
    apart = text.partition("## Where a pair differs")[2]
    assert "\n| reviewkd | resnet50 to mobilenetv2_half | reviewkd.weight 30 |\n" in apart
    assert "\n| mlkd | vgg13 to mobilenetv2_half | learning_rate 0.01 |\n" in apart
