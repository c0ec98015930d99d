"""Pictures and text in a notebook's cell, shown once or kept up to date."""

import importlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from gkd_jax.errors import UserError

WIDTH = 680  # pixels on the screen; the files have more, for sharper ones


def ipython() -> Any:
    """Returns the module `IPython.display`.

    Raises:
      UserError: if it is not there.
    """
    try:
        return importlib.import_module("IPython.display")
    except ImportError as error:
        raise UserError('gkd_jax.notebook needs IPython: pip install "gkd_jax[notebooks]"') from error


def drawn(draw: Callable[[pathlib.Path], None]) -> Any:
    """Returns what `draw` writes into the PNG file that it is given, as something that a notebook can show."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "picture.png"
        draw(file)
        return ipython().Image(data=file.read_bytes(), format="png", width=WIDTH)


class Place:
    """A place in a cell's output that holds one thing, and is empty at first."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: Any = None

    def show(self, content: Any) -> None:
        """Puts a picture, or text, in place of what is there."""
        if content == self._shown:
            return
        self._shown = content
        bundle, more = ({"text/plain": content}, {"raw": True}) if isinstance(content, str) else (content, {})
        if self._handle is None:
            self._handle = ipython().display(bundle, display_id=True, **more)
        else:
            self._handle.update(bundle, **more)
