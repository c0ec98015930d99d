"""How long a task takes that may take long: said near its beginning, once its pace is known."""

from collections.abc import Callable

_LONG = 10.0  # seconds that are worth a line
_PACED = 3, 1.0  # parts, and seconds since the first of them, which compiles, after which the pace is known


class Pace:
    """The pace of one task.

    Attributes:
      long: whether its length was worth a line.
    """

    def __init__(self, total: float, say: Callable[[float], None], clock: Callable[[], float]):
        """Starts the clock.

        Args:
          total: size of the task, in any unit.
          say: told once how many seconds are left, if the whole is going to take long.
          clock: seconds from some moment on.
        """
        self.long = False
        self._total, self._say, self._clock = total, say, clock
        self._started = self._first = clock()
        self._done = self._before = 0.0
        self._parts, self._paced = 0, False

    def did(self, amount: float) -> None:
        """Counts a part that is done, in the unit of the total."""
        self._parts += 1
        self._done += amount
        now = self._clock()
        if self._parts == 1:
            self._first, self._before = now, self._done
        if self._paced or self._parts < _PACED[0] or now - self._first < _PACED[1]:
            return
        self._paced = True
        left = (now - self._first) / (self._done - self._before) * max(0.0, self._total - self._done)
        if now - self._started + left >= _LONG:
            self.long = True
            self._say(left)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._started
