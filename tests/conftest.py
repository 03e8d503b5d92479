"""Eight virtual CPU devices, quick compilation, silence from TensorFlow."""

import gc
import os
import tempfile

from tests import compilation

os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    compilation.FLAGS,
  ]
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# A program without the lines of its source is quicker to make.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# What is compiled, however quickly, is shared by the processes of one test run,
# and by no other: most runs here compile the same programs.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='vit_jax_compiled')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
# The user's own caches stay as they are.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _caches = tempfile.TemporaryDirectory(prefix='vit_jax_caches')
  os.environ['XDG_CACHE_HOME'] = _caches.name

import pytest

from tests import digits_run
from tests import tiny_run


def pytest_collection_finish():
  """The garbage collector leaves modules alone, and comes less often.

  Otherwise it takes a fifth of the time, most of it in JAX's caches.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


@pytest.fixture(name='finished_run', scope='session')
def fixture_finished_run(tmp_path_factory):
  """A `tiny_run.Run` of seconds on a folder of images; not to be changed."""
  return tiny_run.train(tmp_path_factory.mktemp('tiny_run'))


@pytest.fixture(name='finished', scope='session')
def fixture_finished(tmp_path_factory):
  """(workdir, state, results) of an undisturbed run on the digits; the same."""
  return digits_run.train(tmp_path_factory.mktemp('digits_run'))
