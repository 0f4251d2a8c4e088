"""Commands as a user types them."""

from typer.testing import CliRunner


def run(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result, *words):
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert all(str(word) in line for word in words), line
