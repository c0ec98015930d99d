import doctest

from gkd_jax.reporting import Row, closing_table, table


def test_columns_are_aligned():
    rows = [
        Row("teacher", 1.0, 23520842, 12345.678),
        Row("student alone", 0.0512, 223, 0.04),
        Row("student distilled", None, None, None),
    ]
    lines = closing_table(rows).split("\n")
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[1].replace("-", "").strip() == ""
    assert lines[2].split() == ["teacher", "100.00", "23,520,842", "12345.7"]
    assert lines[3].split() == ["student", "alone", "5.12", "223", "0.0"]
    assert lines[4].split() == ["student", "distilled", "-", "-", "-"]
    ends = [i for i, mark in enumerate(lines[1] + " ") if mark == " " and lines[1][i - 1] == "-"]
    assert all(line[end - 1] != " " for line in lines[2:] for end in ends[1:])
    assert "\n".join(lines).isascii()


def test_several_seeds_have_their_deviation():
    rows = [Row("teacher", 0.95, 10, 1.0), Row("größerer student", 0.9, 10, 1.0, 0.0123)]
    lines = closing_table(rows).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert "  90.00 ± 1.23  " in lines[3]
    assert "±" not in lines[2]


def test_no_rows():
    assert len(closing_table([]).split("\n")) == 2


def test_the_example_of_the_docstring():
    assert doctest.testmod(table).failed == 0
