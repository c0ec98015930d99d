"""Puts the repository's root on the path: `experiments` is not installed."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
