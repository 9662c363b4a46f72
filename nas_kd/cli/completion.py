"""Scripts with which a shell completes commands, options and files of `nas-kd`; made of the command line's own tree.

The scripts hold all words themselves: the Tab key starts no Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import Any

PROGRAM = "nas-kd"


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        names: all spellings, such as `--help` and `-h`.
        help: what it is for, in one line.
        takes_value: whether a word follows.
    """

    names: tuple[str, ...]
    help: str
    takes_value: bool


@dataclass(frozen=True)
class Command:
    """One command of the program.

    Attributes:
        name: as it is typed.
        help: what it does, in one line.
        options: its options; all other words are files and folders.
    """

    name: str
    help: str
    options: tuple[Option, ...]


def commands_of(group: Any) -> list[Command]:
    """The commands of a command line.

    Args:
        group: of typer or click.
    """
    found = []
    for name, command in group.commands.items():
        options = [
            Option((*each.opts, *each.secondary_opts), _line(each.help), not getattr(each, "is_flag", False))
            for each in command.params
            if each.param_type_name == "option"
        ]
        options.append(Option(("--help", "-h"), "Show this message and exit.", False))
        found.append(Command(name, _line(command.help), tuple(options)))
    return found


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def bash(commands: list[Command]) -> str:
    """The script for bash."""
    cases = "".join(f"        {command.name}) words={quote(' '.join(_names(command)))};;\n" for command in commands)
    return f"""_nas_kd() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={quote(" ".join(command.name for command in commands))}
    elif [ "${{current:0:1}}" = "-" ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _nas_kd {PROGRAM}
"""


def zsh(commands: list[Command]) -> str:
    """The script for zsh."""
    listed = " ".join(quote(f"{command.name}:{command.help}") for command in commands)
    cases = ""
    for command in commands:
        options = [_of_zsh(name, option) for option in command.options for name in option.names]
        cases += f"      {command.name}) _arguments {' '.join(options)} '*:file:_files';;\n"
    return f"""#compdef {PROGRAM}
_nas_kd() {{
  if (( CURRENT == 2 )); then
    local -a commands=({listed})
    _describe command commands
  else
    case "$words[2]" in
{cases}    esac
  fi
}}
compdef _nas_kd {PROGRAM}
"""


def _of_zsh(name: str, option: Option) -> str:
    meaning = option.help.replace("[", "(").replace("]", ")").replace(":", " ")
    return quote(f"*{name}[{meaning}]{':value:_files' if option.takes_value else ''}")


def fish(commands: list[Command]) -> str:
    """The script for fish."""
    lines = []
    for command in commands:
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {command.name} -d {quote(command.help)}")
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = " -r" if option.takes_value else ""
            lines.append(
                f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command.name}' {names}{value} "
                f"-d {quote(option.help)}"
            )
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
"""Name of a shell -> what makes its script."""


def _names(command: Command) -> list[str]:
    return [name for option in command.options for name in option.names]
