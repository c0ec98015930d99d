"""A thread that looks after the other processes: they die, fail or are asked to stop, and all do so together.

Every process keeps a beat and its position in the run on the key-value store, and looks at those of the others. Of a
process that failed it tells the reason, and ends this one as that one ended. One that gave no beat for a while is taken
for dead. JAX would find out too, later, and abort with a stack trace: its own limit is there for what this thread does
not see, a process whose Python hangs.

To stop together takes an agreement, since hosts run ahead of their devices, each as far as it likes. Whoever hears of
the wish first tells it; every thread then holds its process at the next point where it could stop, writes down how many
such points it has passed, and lets go when it has seen everybody's number: all stop at the point after the largest one.
The main threads never wait for each other, which could be in the middle of an exchange between the devices.
"""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from gkd_jax.hosts import board

_PERIOD = 0.5  # seconds between two looks
_MANY = 32  # processes above which each looks less often: it is one store that answers them all
SILENT = 30.0  # seconds without a beat after which a process is taken for dead; JAX waits for `BACKSTOP`
BACKSTOP = 60
LEAVING = 10.0  # seconds that process 0, on which the store is, waits for the others to have read why all end
_WATCH = f"{board.ROOT}/watch"


class Watch:
    """The thread and what the main thread asks of it."""

    def __init__(self, store: Any, me: int, count: int, clock: Callable[[], float] = time.monotonic):
        """Starts nothing yet.

        Args:
          store: `board.client()`.
          me: number of this process.
          count: of processes.
          clock: seconds from some moment on.
        """
        self._store, self._me, self._count, self._clock = store, me, count, clock
        self._wish: Callable[[], int | None] = lambda: None  # the number of the signal that came here
        self._over = threading.Event()
        self._ending = threading.Lock()  # held by the thread that says why this process ends
        self._point = threading.Lock()  # held while it is agreed where to stop
        self._passed, self._stop_at, self._number = 0, -1, 0
        self._told_wish = self._holding = False
        self._beats: dict[int, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, name="gkd_jax-hosts", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        atexit.register(self.end)
        self._thread.start()

    def end(self) -> None:
        """Looks no more, and is missed by nobody: this process has come to its end."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._put(f"left/{self._me}", "")

    def listen(self, wish: Callable[[], int | None]) -> None:
        """Asks `wish` from now on for the number of a signal that came to this process."""
        self._wish = wish

    def passed(self) -> int | None:
        """Counts a point at which the run could stop; returns the number of the signal if it is to stop here.

        All processes pass the same points.
        """
        with self._point:
            self._passed += 1
            return self._number if 0 <= self._stop_at <= self._passed else None

    def silent(self, seconds: float) -> list[int]:
        """Returns the processes that have given no beat for so long."""
        now = self._clock()
        return [other for other, (_, since) in sorted(self._beats.items()) if now - since > seconds]

    def first_to_end(self) -> bool:
        """Returns whether the caller is the first here to say why this process ends; nobody else will then."""
        return self._ending.acquire(blocking=False)

    def tell_end(self, status: int, message: str) -> None:
        """Tells the others why this process ends, and with which status."""
        self._put(f"ended/{self._me}", json.dumps({"status": status, "message": message}))

    def leave(self, status: int) -> NoReturn:
        """Ends this process at once; process 0, which keeps the store, after the others."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):  # the store is gone, and so are the others
            self._put(f"left/{self._me}", "")
            if self._me == 0:
                self._wait_for_others()
        os._exit(status)  # `sys.exit` would wait for processes that may be gone

    def _wait_for_others(self) -> None:
        until = self._clock() + LEAVING
        while self._clock() < until:
            found = self._look()
            gone = {int(key.partition("/")[2]) for key in found if key.startswith("left/")} | set(self.silent(5.0))
            self._note_beats(found)
            if len(gone | {0}) == self._count:
                break
            time.sleep(0.1)
        time.sleep(0.3)  # between having left the store and having left there is a moment

    def _put(self, key: str, value: str) -> None:
        self._store.key_value_set(f"{_WATCH}/{key}", f"={value}", allow_overwrite=True)

    def _look(self) -> dict[str, str]:
        held = self._store.key_value_dir_get(f"{_WATCH}/")
        return {key.split(f"{_WATCH}/", 1)[1]: value[1:] for key, value in held}

    def _run(self) -> None:
        beat, period = 0, _PERIOD * max(1.0, self._count / _MANY)
        while not self._over.wait(period / 10 if self._holding else period):
            beat += 1
            try:
                self._put(f"alive/{self._me}", str(beat))
                found = self._look()
            except Exception as error:
                if self._over.is_set():
                    return
                why = str(error).strip().splitlines()[0][:200]
                self._die(1, f"process 0, which holds the run together, cannot be reached any more ({why})")
            self._see_ends(found)
            self._note_beats(found)
            if dead := self.silent(SILENT):
                who = ", ".join(map(str, dead))
                self._die(1, f"process {who} of {self._count} gave no sign of life for {SILENT:.0f} s; the run ends")
            self._agree(found)

    def _see_ends(self, found: dict[str, str]) -> None:
        for other in range(self._count):
            told = found.get(f"ended/{other}")
            if told is not None and other != self._me:
                ended = json.loads(told)
                self._die(ended["status"], ended["message"])

    def _note_beats(self, found: dict[str, str]) -> None:
        now = self._clock()
        for other in range(self._count):
            if f"left/{other}" in found:
                self._beats.pop(other, None)
                continue
            seen = found.get(f"alive/{other}", "")
            if other != self._me and self._beats.get(other, (None, 0.0))[0] != seen:
                self._beats[other] = (seen, now)

    def _agree(self, found: dict[str, str]) -> None:
        """Takes a step towards a common point to stop at, if somebody wants to stop."""
        number = self._wish()
        if number is not None and not self._told_wish:
            self._told_wish = True
            self._put(f"stop/{self._me}", str(number))
        wishes = [found[key] for key in (f"stop/{other}" for other in range(self._count)) if key in found]
        if not wishes or self._stop_at >= 0:
            return
        if not self._holding:
            self._point.acquire()
            self._holding = True
            self._put(f"at/{self._me}", str(self._passed))
        at = [found.get(f"at/{other}") for other in range(self._count)]
        if any(point is None for point in at):
            return
        self._stop_at, self._number = max(int(point) for point in at if point is not None) + 1, int(wishes[0])
        self._holding = False
        self._point.release()

    def _die(self, status: int, message: str) -> NoReturn:
        if not self.first_to_end():
            while True:  # the main thread is about to say something
                time.sleep(60)
        sys.stderr.write(f"\ngkd_jax: {message}\n")
        if self._me == 0:
            with contextlib.suppress(Exception):
                self.tell_end(status, message)
        self.leave(status)


_watch: Watch | None = None


def watch() -> Watch:
    """Returns the watch of this process, which begins with the first call."""
    global _watch
    if _watch is None:
        _watch = Watch(board.client(), board.index(), board.count())
        _watch.start()
    return _watch


def running() -> Watch | None:
    """Returns the watch of this process, if it has begun."""
    return _watch


def forget() -> Watch | None:
    """Returns the watch, if it has begun; the next call of `watch` begins another."""
    global _watch
    before, _watch = _watch, None
    return before
