"""Commands in scripts and documents name subcommands and options that exist."""

import re
from functools import cache
from pathlib import Path

import pytest
import typer.main

from ssn.cli import bench, export, infer, train

ROOT = Path(__file__).parents[2]
APPS = {"ssn-infer": infer.app, "ssn-train": train.app, "ssn-export": export.app, "ssn-bench": bench.app}
# Functions of scripts that hand their arguments to a command.
WRAPPERS = {
    "shared": "ssn-train ablate",
    "fit": "ssn-train fit",
    "calibrate": "ssn-train calibrate",
    "bench": "ssn-bench",
}
FILES = [
    *(path for path in (ROOT / "scripts").iterdir() if path.suffix != ".py"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "README.md",
]


@cache
def options(tool: str, command: str | None) -> frozenset[str]:
    group = typer.main.get_command(APPS[tool])
    chosen = group.commands[command] if command else group
    return frozenset(name for parameter in chosen.params for name in (*parameter.opts, *parameter.secondary_opts))


def invocations(path: Path) -> list[tuple[str, str]]:
    """Each tool and what follows it, in code; `command -v TOOL` runs none."""
    text = path.read_text().replace("\\\n", " ")
    if path.suffix == ".md":
        text = "\n".join(code(text))
    else:
        for name, command in WRAPPERS.items():
            text = re.sub(rf"^( *){name} (?!=)", rf"\1{command} ", text, flags=re.MULTILINE)
    text = re.sub(r"(^|\s)#.*", "", text)
    return re.findall(r"(?<![\w/.])(?<!command -v )(ssn-(?:infer|train|export|bench))(?![\w-])([^|;&\n]*)", text)


def code(text: str) -> list[str]:
    return [block or inline for block, inline in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_and_option_exists(path):
    for tool, rest in invocations(path):
        words = rest.split()
        group = typer.main.get_command(APPS[tool])
        command = None
        if hasattr(group, "commands") and words and not words[0].startswith(("-", "[")):
            command = words[0]
            assert command in group.commands, f"{tool} {rest}"
        given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - {"--help"}
        assert given <= options(tool, command), f"{tool} {rest}"


def test_commands_are_found_in_scripts_and_in_documents():
    found = {path.name: len(invocations(path)) for path in FILES}
    assert found["ablation_suite"] >= 6
    assert found["README.md"] > 10
