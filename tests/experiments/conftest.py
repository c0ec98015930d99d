import grid_case
import pytest

from experiments.grid import run as running


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to work in, with a grid in it, and a run that looks often."""
    monkeypatch.setattr(running, "_POLL", 0.01)
    monkeypatch.setattr(running, "_ELSEWHERE", 0.05)
    monkeypatch.chdir(tmp_path)
    grid_case.write()
    return tmp_path
