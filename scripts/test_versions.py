"""Tests vit_jax with the lowest or the newest versions of its dependencies.

Examples:
  Install the lower bounds of setup.py and run the quick tests:
    python scripts/test_versions.py lowest
  Run other tests with the newest versions, and keep the environment:
    python scripts/test_versions.py newest --env=/tmp/newest -- \\
      python -m pytest -q -n 1 tests/models

The environment has the Python of this script and needs 2 GB of disk. The script
itself needs the library `packaging`. If a lower
bound has no wheel for this Python, the next version that has one is installed,
and the output says so. The exit status is that of the tests.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from packaging import requirements
from packaging import utils
from packaging import version

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = ('python', '-m', 'pytest', '-q', 'tests')


class Environment:
  """A new virtual environment with vit_jax and its dependencies."""

  def __init__(self, folder: pathlib.Path, which: str):
    """Installs the 'lowest' or the 'newest' versions into a folder."""
    self._folder = folder
    self._bin = folder / ('Scripts' if os.name == 'nt' else 'bin')
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    self._python('-m', 'pip', 'install', '-q', 'uv')
    self._python('-m', 'pip', 'install', '-q', '--no-deps', '-e', ROOT)
    self.requirements = self._read_requirements()
    self._install(which)
    rows = json.loads(self._python('-m', 'pip', 'list', '--format=json'))
    self._installed = {
      utils.canonicalize_name(row['name']): row['version'] for row in rows
    }

  def _python(self, *arguments):
    """Runs the Python of the environment; returns what it printed."""
    return subprocess.run(
      [self._bin / 'python', *arguments],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout

  def _read_requirements(self):
    """Returns the requirements of vit_jax for its tests."""
    lines = self._python(
      '-c',
      'import importlib.metadata, json\n'
      'print(json.dumps(importlib.metadata.requires("vit_jax")))',
    )
    found = map(requirements.Requirement, json.loads(lines))
    return [
      requirement
      for requirement in found
      if requirement.name != 'vit_jax'
      and (
        not requirement.marker
        or requirement.marker.evaluate({'extra': 'test'})
        or requirement.marker.evaluate({'extra': 'mutate'})
      )
    ]

  def _install(self, which):
    """Installs wheels; only `promise`, which TFDS needs, has none."""
    wanted = self._folder / 'requirements.txt'
    wanted.write_text(
      ''.join(f'{x.name}{x.specifier}\n' for x in self.requirements)
    )
    self._python(
      *('-m', 'uv', 'pip', 'install', '-q', '--only-binary=:all:'),
      *('--no-binary=promise', f'--python={self._bin / "python"}'),
      f'--resolution={"lowest-direct" if which == "lowest" else "highest"}',
      f'--requirement={wanted}',
    )

  def describe(self) -> str:
    """Returns a line for each requirement: its version and its bound."""
    lines = [f'Python {sys.version.split()[0]}']
    for requirement in self.requirements:
      installed = self._installed[utils.canonicalize_name(requirement.name)]
      line = f'{requirement.name} {installed}'
      bound = next(iter(requirement.specifier)).version
      if version.Version(installed) != version.Version(bound):
        line += f' (lower bound {bound})'
      lines.append(line)
    return '\n'.join(lines)

  def run(self, command: list[str]) -> int:
    """Runs a command in the environment and returns its exit status."""
    path = os.pathsep.join([str(self._bin), os.environ['PATH']])
    variables = {**os.environ, 'PATH': path, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=variables).returncode


def main() -> int:
  """Installs the versions, runs the tests and returns their exit status."""
  argv, command = sys.argv[1:], list(TESTS)
  if '--' in argv:
    end = argv.index('--')
    argv, command = argv[:end], argv[end + 1 :]
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('which', choices=['lowest', 'newest'])
  parser.add_argument('--env', help='folder to keep (default: a temporary one)')
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as temporary:
    environment = Environment(
      pathlib.Path(args.env or temporary).absolute(), args.which
    )
    print(environment.describe(), flush=True)
    status = environment.run(command)
  print(environment.describe())
  print('passed' if not status else f'failed with exit status {status}')
  return status


if __name__ == '__main__':
  sys.exit(main())
