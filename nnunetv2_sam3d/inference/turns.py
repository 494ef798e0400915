"""Several threads with one network: its passes take turns, in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque

from torch import Tensor, nn

# nnU-Net's export sets the number of PyTorch's threads and sets it back: two at once would leave the other's number.
ONE_EXPORT = threading.Lock()


class Stopped(Exception):
    """Nobody is let in any more."""


class Turns:
    """A lock that lets its users in by the order in which they came; Python's own may let the same one in for ever.

    A pass through a network is one turn, so that memory is taken for one window at a time, and a click in one image
    waits for a window of another one, not for the whole of it.
    """

    def __init__(self) -> None:
        self._lock, self._waiting = threading.Lock(), deque[threading.Lock]()
        self._taken = self._stopped = False

    def stop(self) -> None:
        """From now on whoever comes, or waits, gets :class:`Stopped`."""
        self._stopped = True

    def __enter__(self) -> None:
        turn = threading.Lock()
        with self._lock:
            waits = self._taken
            self._taken = True
            if waits:
                turn.acquire()
                self._waiting.append(turn)
        turn.acquire()  # opened by the one before
        if self._stopped:
            self.__exit__()
            raise Stopped("the predictions were stopped")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class InTurn(nn.Module):
    """A network whose passes take turns with those of other threads."""

    def __init__(self, network: nn.Module, turns: Turns) -> None:
        super().__init__()
        self.network, self._turns = network, turns

    def forward(self, image: Tensor) -> Tensor:
        """A pass."""
        with self._turns:
            return self.network(image)
