"""`python -m vit_jax COMMAND …`: lists the commands, or runs one.

A command is a file in `commands/` with two functions. `make_parser()` returns
its parser. `main(arguments)` returns the exit status, or None for 0. The first
line of the file's docstring describes the command in the list.
"""

import ast
from collections.abc import Sequence
import difflib
import importlib
import pathlib
import sys

from vit_jax.parallel import interrupts

_PAGE = """Usage: python -m vit_jax COMMAND [arguments]

Trains Vision Transformers in JAX, and uses trained or published models.

Commands:
{commands}

Training:
  python -m vit_jax.main --config=FILE

Examples:
  Train a small model on handwritten digits, in about 90 seconds on a CPU:
    python -m vit_jax.main --config=configs/quickstart.py
  Measure its accuracy on the test split:
    python -m vit_jax evaluate workdirs/quickstart
  Print the most likely classes of an image:
    python -m vit_jax predict workdirs/quickstart photo.jpg

Help:
  python -m vit_jax COMMAND --help             options of a command
  python -m vit_jax.main --help                options of training
  python -m vit_jax.main --config=FILE --help  settings of an experiment"""


_FOLDER = pathlib.Path(__file__).parent / 'commands'


def find_commands(folder: pathlib.Path = _FOLDER) -> dict[str, str]:
  """Returns {name: first line of the docstring} without importing commands."""
  commands = {}
  for path in sorted(folder.glob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if any(
      isinstance(node, ast.FunctionDef) and node.name == 'main'
      for node in tree.body
    ):
      commands[path.stem] = ast.get_docstring(tree).partition('\n')[0]
  return commands


def start() -> None:
  """Runs `main` and ends the process with its exit status."""
  interrupts.end_at_once()  # before this import, which takes a moment
  from vit_jax.commands import errors

  errors.start(lambda: main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int | None:
  """Runs the command of the first argument and returns its exit status."""
  name, *arguments = argv or ['--help']
  commands = find_commands()
  if name in ('-h', '--help', 'help'):
    width = max(map(len, commands))
    lines = (f'  {name:{width}}  {line}' for name, line in commands.items())
    print(_PAGE.format(commands='\n'.join(lines)))
    return 0
  if name not in commands:
    from vit_jax.commands import errors

    near = difflib.get_close_matches(name, commands, n=1)
    errors.exit_with_error(
      f'there is no command {name!r}'
      + (
        f'; did you mean {near[0]!r}?'
        if near
        else ': the commands are ' + ', '.join(commands)
      )
    )
  return importlib.import_module(f'vit_jax.commands.{name}').main(arguments)


if __name__ == '__main__':
  start()
