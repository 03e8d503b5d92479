"""Compiled programs are cached, or one warning gives the reason."""

import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.slow
def test_a_compilation_cache_that_cannot_be_written_gives_one_warning(tmp_path):
  """The program logs one warning, and JAX logs nothing."""
  (tmp_path / 'file').write_text('')
  code = """
import sys
import jax
from vit_jax.run import setup
from vit_jax.parallel import compilation_cache
compilation_cache.use(sys.argv[1])
for n in range(3):
  jax.jit(lambda x: x + n)(1.0)
"""
  quick = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), **quick}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
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
      env={**environment, **more},
      capture_output=True,
      text=True,
    )
    output = done.stdout + done.stderr
    if named:
      assert output.startswith('warning: ')
      assert output.count('\n') == 1 and f'{named}(Not a directory)' in output
      assert 'config.compilation_cache_dir' in output
    else:
      assert not output
  assert list((tmp_path / 'new/folder').iterdir())
