"""What starts tasks and says what came of them: local processes here, a cluster elsewhere."""

from typing import Protocol

from experiments.grid.tasks import Outcome, Task


class Engine(Protocol):
    """Runs tasks at once, as many as it has room for, each by `python -m experiments.grid.worker FOLDER/task.json`."""

    def slots(self) -> int:
        """Returns how many tasks run at once; an engine may have room for more, which then queue."""
        ...

    def room(self) -> bool:
        """Returns whether another task may be started now."""
        ...

    def start(self, task: Task) -> None:
        """Starts a task, whose folder holds its task.json."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Returns what ended since the last call, after `timeout` seconds at the latest, earlier if anything ends."""
        ...

    def close(self) -> None:
        """Ends what runs, SIGTERM first, so that the runs save themselves; returns when nothing runs any more."""
        ...
