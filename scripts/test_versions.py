"""Tests vit_jax with the lowest or the newest versions of its dependencies.

Examples:
  Install the lower bounds of setup.py and run the quick tests:
    python scripts/test_versions.py lowest
  Run other tests with the newest versions, and keep the environment:
    python scripts/test_versions.py newest --env=/tmp/newest -- \\
      python -m pytest -q -n 1 tests/models

The environment has the Python of this script and needs 2 GB of disk. Its
versions are printed before and after the tests. If a lower bound cannot be
installed, the next version is, and the output says so. The exit status is that
of the tests.
"""

import argparse
import distutils.core
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from packaging import requirements

ROOT = pathlib.Path(__file__).parent.parent
TESTS = ('python', '-m', 'pytest', '-q', 'tests')


def read_requirements():
  """Returns the requirements of setup.py with its extra `test`."""
  os.chdir(ROOT)
  setup = distutils.core.run_setup('setup.py', stop_after='init')
  return [
    requirement
    for line in (*setup.install_requires, *setup.extras_require['test'])
    if (requirement := requirements.Requirement(line)).name != 'vit_jax'
    and (not requirement.marker or requirement.marker.evaluate())
  ]


def make_environment(folder, which, needed):
  """Makes a virtual environment in a folder; returns {package: version}."""
  subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
  python = next(
    path
    for path in (folder / 'bin/python', folder / 'Scripts/python.exe')
    if path.exists()
  )
  pip = [python, '-m', 'pip']
  subprocess.run([*pip, 'install', '-q', 'uv', 'setuptools'], check=True)
  wanted = folder / 'requirements.txt'
  wanted.write_text(''.join(f'{requirement}\n' for requirement in needed))
  subprocess.run(
    [python, '-m', 'uv', 'pip', 'install', '-q', f'--python={python}']
    + [f'--requirement={wanted}', '--only-binary=:all:', '--no-binary=promise']
    + (['--resolution=lowest-direct'] if which == 'lowest' else []),
    check=True,
  )
  subprocess.run([*pip, 'install', '-q', '--no-deps', '-e', ROOT], check=True)
  found = subprocess.run(
    [*pip, 'list', '--format=json'], check=True, stdout=subprocess.PIPE
  )
  return {
    normal(row['name']): row['version'] for row in json.loads(found.stdout)
  }


def normal(name):
  return name.lower().replace('_', '-')


def describe(needed, installed, which):
  """Returns a line for each requirement: its bound and its version."""
  lines = [f'{which} versions, Python {sys.version.split()[0]}:']
  for requirement in needed:
    version = installed[normal(requirement.name)]
    line = f'  {requirement.name} {version}'
    if which == 'lowest' and version not in requirement.specifier:
      raise RuntimeError(f'{line} is installed, but {requirement} is required')
    bound = next(iter(requirement.specifier)).version
    if which == 'lowest' and is_above(version, bound):
      line += f' (no wheel of {bound}, or another package needs more)'
    lines.append(line)
  return '\n'.join(lines)


def is_above(version, bound):
  return requirements.SpecifierSet(f'>{bound}').contains(version)


def main():
  argv, command = sys.argv[1:], []
  if '--' in argv:
    command = argv[argv.index('--') + 1 :]
    argv = argv[: argv.index('--')]
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('which', choices=['lowest', 'newest'])
  parser.add_argument('--env', help='folder to keep (default: a temporary one)')
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.env or temporary).absolute()
    needed = read_requirements()
    versions = describe(
      needed, make_environment(folder, args.which, needed), args.which
    )
    print(versions, flush=True)
    paths = [str(folder / 'bin'), str(folder / 'Scripts'), os.environ['PATH']]
    status = subprocess.run(
      command or TESTS,
      cwd=ROOT,
      env={**os.environ, 'PATH': os.pathsep.join(paths)},
    ).returncode
  print(versions)
  print('passed' if not status else f'failed with exit status {status}')
  return status


if __name__ == '__main__':
  sys.exit(main())
