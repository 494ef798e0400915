"""One display for all steps of a run: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from types import TracebackType

from tqdm import tqdm

QUIET_S = 60.0  # between two reports where the output is no terminal but a log


class Progress:
    """Shows how far the whole run and the running steps are.

    Args:
        total: number of steps.
        slots: how many steps run at the same time.
    """

    def __init__(self, total: int, slots: int) -> None:
        self.live = sys.stdout.isatty()
        self.total = total
        self.ended = 0
        self.bars: list[tqdm | None] = [None] * slots
        self.reported = time.monotonic()
        self.overall = tqdm(total=total, desc="steps", unit="step", file=sys.stdout, disable=not self.live)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in (*self.bars, self.overall):
            if bar is not None:
                bar.close()

    def say(self, text: str) -> None:
        """A line that stays."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def start(self, slot: int, label: str, epochs: int) -> None:
        """A step begins in a slot."""
        if not self.live:
            self.say(f"{label}: begins")
        self.bars[slot] = tqdm(
            total=epochs or None,
            desc=label,
            unit="epoch" if epochs else "s",
            file=sys.stdout if self.live else io.StringIO(),  # lines are taken from it
            position=slot + 1,
            leave=False,
            bar_format=None if epochs else "{desc}: {elapsed}",
        )

    def epoch(self, slot: int, number: int) -> None:
        """The step in a slot has reached an epoch."""
        bar = self.bars[slot]
        assert bar is not None
        bar.n = number if bar.total is None else min(number, bar.total)

    def refresh(self) -> None:
        """Draws what has changed; to be called often."""
        running = [bar for bar in self.bars if bar is not None]
        if self.live:
            for bar in (*running, self.overall):
                bar.refresh()
        elif time.monotonic() - self.reported > QUIET_S:
            self.reported = time.monotonic()
            for bar in running:
                self.say(f"  {bar}")

    def end(self, slot: int | None, label: str, outcome: str) -> None:
        """A step has ended, or will not be run (no slot)."""
        if slot is not None and (bar := self.bars[slot]) is not None:
            outcome += f" ({bar.format_interval(time.time() - bar.start_t)})"
            bar.close()
            self.bars[slot] = None
        self.ended += 1
        self.overall.update()
        self.say(f"[{self.ended}/{self.total}] {label}: {outcome}")
