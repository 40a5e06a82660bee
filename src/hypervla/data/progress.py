"""What long jobs on data show while they run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hypervla.data.staging import Tally


@contextmanager
def decoding_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"decoding {total} frames", file=sys.stderr, flush=True)
        yield lambda frames: None
        return
    with Progress(console=console) as bar:
        row = bar.add_task("decoding frames", total=total)
        yield lambda frames: bar.advance(row, frames)


class RecordingProgress:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, tallies: Sequence[Tally]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._tallies = tallies
        self._total = sum(tally.wanted for tally in tallies)
        self._kept_before = sum(tally.kept for tally in tallies)
        self._start = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(TextColumn("recording"), BarColumn(), TextColumn("{task.description}"), console=console)
        self._plain = not console.is_terminal
        self._row = self._bar.add_task(self._line(), total=self._total, completed=self._kept_before)

    def __enter__(self) -> RecordingProgress:
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop() if not self._plain else print(self._line(), flush=True)

    def update(self) -> None:
        """Show the tallies as they are now."""
        if not self._plain:
            self._bar.update(self._row, completed=sum(tally.kept for tally in self._tallies), description=self._line())
        elif time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            print(self._line(), flush=True)

    def _line(self) -> str:
        kept, failed = (sum(getattr(tally, name) for tally in self._tallies) for name in ("kept", "failed"))
        new, elapsed = kept - self._kept_before, time.monotonic() - self._start
        line = f"{kept}/{self._total} episodes"
        if kept + failed:
            line += f", {kept / (kept + failed):.0%} of attempts succeeded"
        if new:
            left = int(elapsed / new * (self._total - kept))
            line += f", {new / elapsed:.2f} episodes/s, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        return line
