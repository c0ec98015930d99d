"""Times of compilation: the limit, which methods it is not for, and a file of which only one part is replaced."""

import pytest

from experiments import compile_times
from experiments.compile_times import BEGIN, END, above, notes, replaced
from gkd_jax import recipes
from gkd_jax.training.resolve import resolve

# These pull a gradient back through convolutions and differentiate what they get. Counted in the lowered
# steps of resnet8 to resnet8: 71 convolutions (feature_grad 47), where kd and all others of one view have 35.
TWICE = {"input_grad", "feature_grad", "jacobian", "sobolev", "gompertz_cnn"}
VIEWS = {"mlkd", "mlkd_ls"}


def _notes(method):
    return notes(resolve(recipes.standard("resnet56", "resnet20", "cifar100", method))["objective"])


def test_which_methods_need_a_second_backward_pass():
    found = {method: _notes(method) for method in recipes.names()}
    assert {method for method, said in found.items() if said == "second backward pass"} == TWICE
    assert {method for method, said in found.items() if said == "two views"} == VIEWS
    assert {method for method, said in found.items() if said} == TWICE | VIEWS


def test_the_limit_is_for_one_backward_pass():
    said = {"kd": "", "dkd": "", "at": "", "mlkd": "two views", "sobolev": "second backward pass"}
    ratios = {"kd": 1.0, "dkd": 3.0, "at": 3.1, "mlkd": 3.2, "sobolev": 9.0}
    assert above(ratios, said) == ["at", "mlkd"]


def test_what_was_not_measured_stays():
    file = f"# Title\n\nA preface.\n\n{BEGIN}\n\nold\n\n{END}\n\n## By hand\n\n| a | b |\n"
    new = replaced(file, "new\n\nlines")
    assert new == f"# Title\n\nA preface.\n\n{BEGIN}\n\nnew\n\nlines\n\n{END}\n\n## By hand\n\n| a | b |\n"
    assert replaced(new, "old") == file


@pytest.mark.parametrize("file", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_file_without_its_marks_is_refused(file):
    with pytest.raises(ValueError, match=r"compile_times.md must have the lines"):
        replaced(file, "new")


def test_the_file_keeps_to_the_limit():
    text = compile_times.FILE.read_text()
    assert "## The second start" in replaced(text, "new")
    rows = [line.split("|")[1:-1] for line in text[: text.index(END)].splitlines() if line.startswith("| ")][1:]
    found = {cells[0].strip(): cells[1:] for cells in rows}
    assert set(found) == {*recipes.names()} - {"alone", "label_smoothing"}
    kd = sum(map(float, found["kd"][:2]))
    for method, (trace, compiled, ratio, note) in found.items():
        taken = float(trace) + float(compiled)
        assert float(ratio) == pytest.approx(taken / kd, abs=0.07), method  # of numbers that were rounded to a tenth
        assert note.strip() == _notes(method), method
        assert method in TWICE or taken <= 3 * kd, method
    assert "Above it: none." in text
