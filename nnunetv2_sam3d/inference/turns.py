"""Several threads with one network: its passes take turns, in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque

from torch import Tensor, nn

# nnU-Net's export sets the number of PyTorch's threads and sets it back: two at once would leave the other's number.
ONE_EXPORT = threading.Lock()


class Stopped(Exception):
    """Nobody is let in any more."""


class _Queue:
    """A lock that lets its users in by the order in which they came; Python's own may let the same one in for ever."""

    def __init__(self) -> None:
        self._lock, self._waiting = threading.Lock(), deque[threading.Lock]()
        self._taken = False

    def enter(self) -> None:
        turn = threading.Lock()
        with self._lock:
            if self._taken:
                turn.acquire()
                self._waiting.append(turn)
            self._taken = True
        turn.acquire()  # opened by the one before

    def leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Turns:
    """Entered around each pass through a network, one window's.

    So memory is taken for one window at a time, and a click in one image waits for a window of another one, not for
    the whole of it.

    Args:
        parent: whose queue this is, too, and which stops this one with itself.
    """

    def __init__(self, parent: Turns | None = None) -> None:
        self._parent, self._stopped = parent, False
        self._queue: _Queue = parent._queue if parent is not None else _Queue()

    def branch(self) -> Turns:
        """In the same queue, but stopped alone."""
        return Turns(self)

    def stop(self) -> None:
        """From now on whoever comes, or waits, gets :class:`Stopped`."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether nobody is let in any more."""
        return self._stopped or (self._parent is not None and self._parent.stopped)

    def __enter__(self) -> None:
        self._queue.enter()
        if self.stopped:
            self._queue.leave()
            raise Stopped("the predictions were stopped")

    def __exit__(self, *_: object) -> None:
        self._queue.leave()


class InTurn(nn.Module):
    """A network whose passes take turns with those of other threads."""

    def __init__(self, network: nn.Module, turns: Turns) -> None:
        super().__init__()
        self.network, self._turns = network, turns

    def forward(self, image: Tensor) -> Tensor:
        """A pass."""
        with self._turns:
            return self.network(image)
