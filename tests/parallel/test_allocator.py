"""A command restarts itself with an allocator that suits XLA on CPUs."""

import os
import subprocess
import sys

import pytest

from vit_jax.parallel import allocator

LIBRARY = 'libtcmalloc_minimal.so.4'


@pytest.fixture(name='machine')
def fixture_machine(tmp_path, monkeypatch):
  """Returns a folder of libraries of a Linux machine with huge pages."""
  pages = tmp_path / 'enabled'
  pages.write_text('always [madvise] never\n')
  monkeypatch.setattr(allocator, '_PAGES_FILE', str(pages))
  monkeypatch.setattr(allocator, '_library_folders', lambda: [str(tmp_path)])
  monkeypatch.setattr(allocator, '_ACCELERATORS', [f'{tmp_path}/nvidia[0-9]'])
  monkeypatch.setattr(allocator.platform, 'libc_ver', lambda: ('glibc', '2.35'))
  return tmp_path


def test_an_installed_library_has_priority_over_huge_pages(machine):
  assert allocator.find({}) == {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  (machine / LIBRARY).touch()
  assert allocator.find({}) == {'LD_PRELOAD': f'{machine}/{LIBRARY}'}


@pytest.mark.parametrize(
  'name', ['LD_PRELOAD', 'GLIBC_TUNABLES', 'VIT_JAX_ALLOCATOR']
)
def test_a_choice_of_the_user_stays(machine, name):
  (machine / LIBRARY).touch()
  assert allocator.find({name: 'x'}) == {}


def test_a_machine_with_an_accelerator_keeps_its_allocator(machine):
  (machine / 'nvidia0').touch()
  assert allocator.find({}) == {}
  assert allocator.find({'JAX_PLATFORMS': 'cpu'})
  assert allocator.find({'JAX_PLATFORMS': 'cuda'}) == {}


@pytest.mark.parametrize(
  'version, pages',
  [
    (('glibc', '2.34'), 'madvise'),
    (('', ''), 'madvise'),
    (('glibc', '2.35'), '[never]'),
  ],
)
def test_without_huge_pages_nothing_changes(
  machine, monkeypatch, version, pages
):
  monkeypatch.setattr(allocator.platform, 'libc_ver', lambda: version)
  (machine / 'enabled').write_text(pages)
  assert allocator.find({}) == {}


def test_a_restart_keeps_options_and_arguments(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    'import os, sys\n'
    'from vit_jax.parallel import allocator\n'
    "allocator.find = lambda _: {} if 'NEW' in os.environ else {'NEW': 'x'}\n"
    'allocator.restart()\n'
    "print(os.environ['NEW'], sys.argv[1:], sys.flags.optimize)\n"
  )
  found = subprocess.run(
    [sys.executable, '-O', script, '--a b', ''],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    check=True,
    text=True,
  )
  assert found.stdout == "x ['--a b', ''] 1\n"
