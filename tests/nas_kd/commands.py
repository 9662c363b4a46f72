"""The command line as tests call it."""

from __future__ import annotations

from typer.testing import CliRunner

from nas_kd.cli import app


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `nas-kd` with these arguments."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})
    return result.exit_code, result.output


def succeed(*arguments: object) -> str:
    """Its output, where it must succeed."""
    code, output = cli(*arguments)
    assert code == 0, output
    return output
