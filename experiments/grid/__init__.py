"""The grid runner: `python -m experiments.grid --help`."""
