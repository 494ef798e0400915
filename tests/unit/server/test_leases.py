"""Leases: so many at a time, each of its own, ended by idleness, silence or release."""

from __future__ import annotations

import threading
import time

import pytest

from nnunetv2_sam3d.inference.turns import Stopped, Turns
from nnunetv2_sam3d.server.leases import AllTaken, LeaseExpired, Leases
from nnunetv2_sam3d.server.offer import Offer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(offer: Offer, clock: Clock) -> Leases:
    return Leases(offer.new_session, most=2, idle_s=100, liveness_s=30, clock=clock)


def test_so_many_at_a_time(leases: Leases) -> None:
    one, other = leases.claim(), leases.claim()
    assert one.token != other.token and len(one.token) == 32 and one.session is not other.session
    with pytest.raises(AllTaken, match="--sessions"):
        leases.claim()
    leases.release(one.token)
    leases.release("never there")
    leases.release(None)
    third = leases.claim()
    assert leases.find(third.token) is third and len(leases) == 2
    for token in (one.token, "", None, "x" * 32):
        with pytest.raises(LeaseExpired, match="connect again"):
            leases.find(token)


def test_expiry(leases: Leases, clock: Clock) -> None:
    lease = leases.claim()
    for _ in range(4):  # signs of life, but no user
        clock.now += 25
        leases.find(lease.token)
    assert leases.remaining_s(lease) == 0
    clock.now += 1
    with pytest.raises(LeaseExpired):
        leases.find(lease.token)
    lease = leases.claim()
    leases.find(lease.token, alive=False)
    clock.now += 31  # no sign of life
    assert leases.expire() == [lease.token]
    lease = leases.claim()
    lease.busy = 1
    clock.now += 1000
    assert leases.find(lease.token) is lease  # what is computed is not taken away
    lease.busy = 0
    leases.use(lease)
    assert leases.remaining_s(lease) == 100


def test_impossible_leases(offer: Offer) -> None:
    for wrong in ({"most": 0}, {"idle_s": 0}, {"liveness_s": float("nan")}):
        with pytest.raises(ValueError, match="must be positive"):
            Leases(offer.new_session, **wrong)  # type: ignore[arg-type]


def test_turns_are_in_order() -> None:
    """Whoever comes back at once waits behind the others; after stop() nobody is let in."""
    turns, order, together = Turns(), list[str](), [0]

    def take(name: str, times: int) -> None:
        for _ in range(times):
            with turns:
                together[0] += 1
                assert together[0] == 1
                order.append(name)
                time.sleep(0.01)
                together[0] -= 1

    long, short = threading.Thread(target=take, args=("long", 20)), threading.Thread(target=take, args=("short", 5))
    long.start()
    time.sleep(0.03)
    short.start()
    long.join()
    short.join()
    first = order.index("short")
    assert order[first : first + 9 : 2] == ["short"] * 5  # each second turn
    one, other = turns.branch(), turns.branch()
    one.stop()
    for _ in range(2):  # the second one does not wait for ever
        with pytest.raises(Stopped), one:
            pass
    with other:
        pass
    turns.stop()
    for stopped in (turns, other):
        with pytest.raises(Stopped), stopped:
            pass
