"""What a command shows while it works: rich on a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import click

from scalebrain.options import Progress, show_progress

__all__ = ["watched"]

logger = logging.getLogger("scalebrain")


def _duration(seconds: float) -> str:
    """Duration in words: ``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _plain_progress(clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as plain lines, at most ten a piece of work, with the time that is left."""
    shown: dict[str, int] = {}
    began: dict[str, tuple[float, int]] = {}

    def show(label: str, done: int, total: int) -> None:
        now = clock()
        start, before = began.get(label, (now, done))
        if done < before or label not in began:
            start, before = began[label] = now, done
            shown.pop(label, None)
        tenth = 10 * done // total if total else 10
        if shown.get(label) == tenth:
            return
        shown[label] = tenth
        line = f"{label}: {done}/{total}"
        if before < done < total:
            left = (now - start) / (done - before) * (total - done)
            line += f", about {_duration(left)} left"
        elif done >= total and now - start >= 1:
            line += f" in {_duration(now - start)}"
        if done >= total:
            began.pop(label)
        click.echo(line, err=True)

    return show


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Show log, warnings and progress of everything inside the block."""
    level, propagated = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    shown = _on_terminal() if sys.stderr.isatty() else _in_lines()
    try:
        with warnings.catch_warnings(), shown:
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.showwarning = _log_warning
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagated


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Log a warning, without the line of code that it came from."""
    logger.warning("%s", message)


@contextlib.contextmanager
def _in_lines() -> Iterator[None]:
    """Plain lines with the time of day."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    try:
        with show_progress(_plain_progress()):
            yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _on_terminal() -> Iterator[None]:
    """Bars with elapsed and remaining time, below the log."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_level=False)
    logger.addHandler(handler)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    tasks: dict[str, Any] = {}
    try:
        with Progress(*columns, console=console, transient=True) as bars:

            def show(label: str, done: int, total: int) -> None:
                if label not in tasks or bars.tasks[tasks[label]].finished:
                    tasks[label] = bars.add_task(label, total=total)
                bars.update(tasks[label], completed=done, total=total)

            with show_progress(show):
                yield
    finally:
        logger.removeHandler(handler)
