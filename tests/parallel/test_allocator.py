"""A command restarts itself with an allocator that suits XLA on CPUs."""

import os
import signal
import subprocess
import sys

import pytest

from vit_jax.parallel import allocator
from vit_jax.parallel import interrupts

LIBRARY = 'libtcmalloc_minimal.so.4'


@pytest.fixture(name='machine')
def fixture_machine(tmp_path, monkeypatch):
  """Returns the folder of libraries of a Linux machine without accelerator."""
  monkeypatch.setattr(allocator, '_library_folders', lambda: [str(tmp_path)])
  monkeypatch.setattr(allocator, '_ACCELERATORS', [f'{tmp_path}/nvidia[0-9]'])
  return tmp_path


def test_tcmalloc_is_used_where_it_is_installed(machine):
  assert allocator.find({}) == {}
  (machine / LIBRARY).touch()
  assert allocator.find({}) == {'LD_PRELOAD': f'{machine}/{LIBRARY}'}


@pytest.mark.parametrize('name', ['LD_PRELOAD', 'VIT_JAX_ALLOCATOR'])
def test_a_choice_of_the_user_stays(machine, name):
  (machine / LIBRARY).touch()
  assert allocator.find({name: 'x'}) == {}


def test_a_machine_with_an_accelerator_keeps_its_allocator(machine):
  (machine / LIBRARY).touch()
  (machine / 'nvidia0').touch()
  assert allocator.find({}) == {}
  assert allocator.find({'JAX_PLATFORMS': 'cpu'})
  assert allocator.find({'JAX_PLATFORMS': 'cuda'}) == {}


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


def test_ctrl_c_waits_for_the_restarted_process(monkeypatch):
  masks = []
  monkeypatch.setattr(allocator, 'find', lambda environment: {'A': 'b'})
  monkeypatch.setattr(allocator.os, 'environ', {})
  monkeypatch.setattr(
    allocator.os,
    'execv',
    lambda *_: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
  )
  before = signal.getsignal(signal.SIGINT)
  try:
    allocator.restart()
    interrupts.end_at_once()
    masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
  finally:
    signal.signal(signal.SIGINT, before)
  assert [signal.SIGINT in mask for mask in masks] == [True, False]
