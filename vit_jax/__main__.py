"""`python -m vit_jax COMMAND …`: lists the commands, or runs one.

A command is a file in `commands/` with a function `main(arguments)`, which
returns the exit status. The first line of its docstring is its line in the
list.
"""

import ast
import difflib
import importlib
import pathlib
import sys

from vit_jax.commands import errors

_USAGE = """usage: python -m vit_jax COMMAND …

Commands (each has --help):
{commands}

Training: python -m vit_jax.main --config=configs/quickstart.py"""


def find_commands():
  """{name: what it does} of all commands, found without importing them."""
  commands = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('commands/*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if any(
      isinstance(node, ast.FunctionDef) and node.name == 'main'
      for node in tree.body
    ):
      commands[path.stem] = ast.get_docstring(tree).partition('\n')[0]
  return commands


def start():
  """Runs `main`, and ends the process with its exit status."""
  errors.start(main)


def main():
  """Runs the command that the first argument names."""
  commands = find_commands()
  name, *arguments = sys.argv[1:] or ['--help']
  if name in ('-h', '--help', 'help'):
    width = max(map(len, commands))
    print(
      _USAGE.format(
        commands='\n'.join(
          f'  {name:{width}}  {line}' for name, line in commands.items()
        )
      )
    )
    return 0
  if name not in commands:
    near = difflib.get_close_matches(name, commands, n=1)
    errors.exit_with_error(
      f'there is no command {name!r}'
      + (
        f'; did you mean {near[0]!r}?'
        if near
        else ': there are ' + ', '.join(commands)
      )
    )
  return importlib.import_module(f'vit_jax.commands.{name}').main(arguments)


if __name__ == '__main__':
  start()
