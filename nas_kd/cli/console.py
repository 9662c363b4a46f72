"""What the command line prints: text, errors as sentences, a progress bar."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nas_kd.callbacks import OnProgress

WIDTH_OF_A_FILE = 10_000  # characters of a line
console = Console()
errors = Console(stderr=True)


def say_table(table: RenderableType) -> None:
    """Print a table as wide as the terminal; into a file or a pipe whole, however wide."""
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(width=WIDTH_OF_A_FILE)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        say(line.rstrip())  # captions are padded to the whole width


def say(text: object) -> None:
    """Print text as it is, without markup and in one line, so that a path can be copied."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def listed(items: list[str] | None) -> list[str]:
    """The values of a repeatable option, each of which may list several, separated by commas."""
    return [name for item in items or () for name in item.split(",")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Mistakes of the user are printed as a sentence, with exit code 2; failures of the machine have exit code 1."""
    try:
        yield
    except typer.Exit:  # a RuntimeError too
        raise
    except (ValueError, OSError, RuntimeError) as error:
        from nas_kd.trials.passwords import masked  # needs none of what searches need

        errors.print(f"nas-kd: {masked(_sentence(error))}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, ValueError | FileNotFoundError) else 1) from error


def _sentence(error: Exception) -> str:
    """An error in words; one of the system begins with the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


@contextmanager
def termination_is_interrupt() -> Iterator[None]:
    """SIGTERM, which `kill` and batch systems send, and SIGHUP of a lost terminal end a campaign as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as below `nohup`
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A bar with ETA on a terminal; on anything else a line for each quarter."""
    if not console.is_terminal:
        said: set[tuple[str, int]] = set()

        def line(share: float, words: str) -> None:
            quarter = (words.partition(",")[0], int(share * 4))
            if quarter not in said:
                said.add(quarter)
                say(f"{words}: {share:.0%}")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("preparing", total=1.0)
        yield lambda share, words: bar.update(task, completed=share, description=escape(words))
