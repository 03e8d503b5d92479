"""Compiled programs are kept, or it is said once why they are not."""

import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.slow
def test_a_compilation_cache_that_cannot_be_written_is_named_once(tmp_path):
  """A program that compiles says so once, and JAX adds nothing."""
  (tmp_path / 'file').write_text('')
  code = """
import sys
import jax
from vit_jax.run import setup
setup.use_compilation_cache(sys.argv[1])
for n in range(3):
  jax.jit(lambda x: x + n)(1.0)
"""
  quick = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  given = {**os.environ, 'PYTHONPATH': str(ROOT), **quick}
  given.pop('JAX_COMPILATION_CACHE_DIR', None)
  caches = str(tmp_path / 'file')
  for folder, more, named in (
    (f'{caches}/x', {}, f'{caches}/x '),
    ('', {'XDG_CACHE_HOME': caches}, f'{caches}/vit_jax/compiled '),
    ('', {'JAX_COMPILATION_CACHE_DIR': f'{caches}/y'}, f'{caches}/y '),
    ('off', {'XDG_CACHE_HOME': caches}, ''),
    (f'{tmp_path}/new/folder', {}, ''),
  ):
    done = subprocess.run(
      [sys.executable, '-c', code, folder],
      check=True,
      env={**given, **more},
      capture_output=True,
      text=True,
    )
    said = done.stdout + done.stderr
    if named:
      assert said.startswith('warning: compiled programs cannot be kept in ')
      assert said.count('\n') == 1 and f'{named}(Not a directory)' in said
    else:
      assert not said
  assert list((tmp_path / 'new/folder').iterdir())
