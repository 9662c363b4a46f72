"""The command line `nas-kd`: launch campaigns, read their fronts, export and run students."""

from __future__ import annotations

from typing import Annotated

import typer

from nas_kd.cli import campaigns, fronts, students
from nas_kd.cli.console import say

# As nas_kd.search_spaces.CONVENTION, which would bring torch along: `--help` answers at once.
CONVENTION = (
    "fvcore: one multiply-accumulate is one FLOP; element-wise operators and reductions are not counted, but the "
    "additions and subtractions of delta layers are"
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Find the cheap students of a heavy video model. FLOPs: {CONVENTION}.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from nas_kd import __version__

        say(f"nas-kd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


for command in (*campaigns.COMMANDS, *fronts.COMMANDS, *students.COMMANDS):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="nas-kd")
