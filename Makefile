# Two commands for a new machine: `make demo` and `make test`. Both make .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check clean

demo: $(VENV)/demo.done
	$(BIN)/python -m gkd_jax.main --config configs/digits.py --workdir runs/digits

test: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/test.done
	GKD_TEST_OPTIMISED=1 $(BIN)/python -m pytest -n 2 --dist worksteal --all $(ARGS)

check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gkd_jax

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt holds the newest versions that the tests passed on, so that this works years from now.
$(VENV)/demo.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/demo.done

clean:
	rm -rf $(VENV) runs build dist
