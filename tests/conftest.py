"""Sets up eight virtual CPU devices, fast compilation and quiet TensorFlow."""

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
# Without source locations in the programs, tracing is faster.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# Most training runs here compile the same programs. The processes of one test
# run share all compiled programs, even those that compile quickly. Different
# test runs share nothing.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='vit_jax_compiled')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
# The tests must not change the user's own caches.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _caches = tempfile.TemporaryDirectory(prefix='vit_jax_caches')
  os.environ['XDG_CACHE_HOME'] = _caches.name

import pytest

from tests import digits_run
from tests import tiny_run


def pytest_configure():
  """Disables garbage collection until all test modules are imported."""
  gc.disable()


def pytest_collection_finish():
  """Excludes modules from garbage collection, and collects less often.

  With default settings, garbage collection takes a fifth of the time. It spends
  most of this time in JAX's caches.
  """
  gc.collect()
  gc.freeze()
  gc.enable()
  gc.set_threshold(50_000, 20, 100)


@pytest.fixture(name='finished_run', scope='session')
def fixture_finished_run(tmp_path_factory):
  """Returns a `tiny_run.Run` on a folder of images; do not change its files."""
  return tiny_run.train(tmp_path_factory.mktemp('tiny_run'))


@pytest.fixture(name='finished', scope='session')
def fixture_finished(tmp_path_factory):
  """Returns (workdir, state, results) of a finished run on the digits.

  The run was not interrupted. Do not change its files.
  """
  return digits_run.train(tmp_path_factory.mktemp('digits_run'))
