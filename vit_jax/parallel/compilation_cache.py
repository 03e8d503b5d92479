"""The cache of compiled programs, which makes the next start faster."""

import os
import tempfile

import jax

from vit_jax import console


def use(folder: str) -> None:
  """Enables JAX's compilation cache.

  Args:
    folder: folder of the cache. '' is ~/.cache/vit_jax/compiled, and 'off'
      disables the cache. JAX's own option, if it is set, has priority.
  """
  if folder == 'off':
    return
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  folder = jax.config.jax_compilation_cache_dir or os.path.expanduser(
    folder or os.path.join(caches, 'vit_jax', 'compiled')
  )
  if '://' not in folder:
    try:
      os.makedirs(folder, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        pass
    except OSError as error:
      console.log_info(
        f'warning: cannot write compiled programs to {folder} '
        f'({error.strerror}), so each start compiles again. Set '
        'config.compilation_cache_dir to a writable folder, or to off'
      )
      folder = None
  jax.config.update('jax_compilation_cache_dir', folder)
