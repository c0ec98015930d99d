"""The table of pairs and methods says what is run."""

from experiments import pairs
from gkd_jax import recipes


def test_the_file_is_what_the_configurations_say():
    assert pairs.FILE.read_text() == pairs.text(), "run python -m experiments.pairs"


def test_every_method_has_a_row():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in pairs.text().splitlines() if line.startswith("| ")]
    assert set(recipes.names()) <= set(rows)
