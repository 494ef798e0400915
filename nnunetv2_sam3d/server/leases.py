"""Who may use the server: a token for each client, so many at a time, given back or expired."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nnunetv2_sam3d.server.interactive_session import InteractiveSession

IDLE_S, LIVENESS_S = 600.0, 60.0


class LeaseExpired(Exception):
    """There is no lease of that token, or none any more."""


class AllTaken(Exception):
    """Every session is in use."""


@dataclass
class Lease:
    """A client's session.

    Attributes:
        token: what the client shows.
        session: its image, clicks and mask.
        lock: held during a request, so that those of one client follow one another.
        used: time of the last request that a user made.
        alive: time of the last sign of life.
        busy: requests that are computed now; such a lease does not expire.
        page: what a browser's page keeps beside the session.
    """

    token: str
    session: InteractiveSession
    used: float
    alive: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    busy: int = 0
    page: Any = None


class Leases:
    """The sessions in use. Not for several threads: everything happens in the event loop.

    Args:
        new_session: makes a session without an image.
        most: sessions at a time.
        idle_s: without a request of the user a lease expires after that.
        liveness_s: without any sign of the client it expires after that.
        clock: seconds.
    """

    def __init__(
        self,
        new_session: Callable[[], InteractiveSession],
        *,
        most: int = 3,
        idle_s: float = IDLE_S,
        liveness_s: float = LIVENESS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if most < 1 or not idle_s > 0 or not liveness_s > 0:
            raise ValueError(f"sessions and timeouts must be positive, got {most}, {idle_s} s and {liveness_s} s")
        self._new_session, self._clock = new_session, clock
        self.most, self.idle_s, self.liveness_s = most, idle_s, liveness_s
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        self.expire()
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def claim(self, left_behind: int = 0) -> Lease:
        """A new lease.

        Args:
            left_behind: predictions that still run for clients that are gone; each counts as a session.

        Raises:
            AllTaken: if there are as many as there may be.
        """
        self.expire()
        if len(self._leases) + left_behind >= self.most:
            raise AllTaken(
                f"all {self.most} sessions are in use; try again when somebody has disconnected (an unused session "
                f"ends after {self.idle_s:g} s), or start the server with more: --sessions"
            )
        now = self._clock()
        lease = Lease(secrets.token_hex(16), self._new_session(), now, now)
        self._leases[lease.token] = lease
        return lease

    def find(self, token: str | None, *, alive: bool = True) -> Lease:
        """The lease of a token; with ``alive`` this is a sign of life.

        Raises:
            LeaseExpired: if there is none.
        """
        self.expire()
        lease = self._leases.get(token or "")
        if lease is None:
            raise LeaseExpired(
                "the session has expired or was never there (the server may have been started again): connect again "
                "(Initialize)"
            )
        if alive:
            lease.alive = self._clock()
        return lease

    def use(self, lease: Lease) -> None:
        """A user asked for something: both timeouts begin anew."""
        lease.used = lease.alive = self._clock()

    def remaining_s(self, lease: Lease) -> float:
        """Until the lease is idle for too long."""
        return max(0.0, lease.used + self.idle_s - self._clock())

    def release(self, token: str | None) -> None:
        """Ends a lease, and what is predicted for it; nothing happens if there is none."""
        if lease := self._leases.pop(token or "", None):
            lease.session.close()

    def expire(self) -> list[str]:
        """Ends what has expired; its tokens."""
        now = self._clock()
        ended = [
            lease.token
            for lease in self._leases.values()
            if not lease.busy and (now > lease.used + self.idle_s or now > lease.alive + self.liveness_s)
        ]
        for token in ended:
            del self._leases[token]
        return ended
