"""The package works without TensorFlow, and without modules of POSIX.

A process simulates a machine where these modules cannot be imported, and where
Python has no `signal.SIGHUP` and no `os.sysconf`, as on Windows.
"""

import subprocess
import sys

import numpy as np

from tests import ROOT
import vit_jax

# Every finder answers that there is no such module, as without the package.
MISSING = """
import os, signal, sys
import psutil  # on Linux, it uses `resource`
MISSING = {'tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'keras',
           'fcntl', 'resource', 'pwd', 'grp', 'termios'}

class Without:
  def __init__(self, finder):
    self.finder = finder
  def find_spec(self, name, *args):
    if name.partition('.')[0] not in MISSING:
      return self.finder.find_spec(name, *args)

# The standard library may have imported them already.
for name in MISSING & set(sys.modules):
  del sys.modules[name]
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
del signal.SIGHUP, os.sysconf
"""


def run(code, *arguments):
  """Runs code on the simulated machine; returns what it printed."""
  done = subprocess.run(
    [sys.executable, '-c', MISSING + code, *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return done.stdout + done.stderr


def test_modules_are_imported_and_commands_name_tensorflow(tmp_path):
  printed = run(
    """
import pathlib, importlib
paths = list(pathlib.Path('vit_jax').rglob('*.py'))
assert len(paths) > 90
for path in paths:
  if path.name != '__main__.py':
    importlib.import_module('.'.join(path.with_suffix('').parts))
assert not MISSING & set(sys.modules), MISSING & set(sys.modules)

from vit_jax import main
from vit_jax.commands import evaluate, predict
run = ['--config=configs/quickstart.py', f'--workdir={sys.argv[1]}']
for command, arguments in (
  (main.main, run),
  (main.main, [*run, '--dry_run']),
  (predict.main, ['w.npz', 'photo.png']),
  (evaluate.main, ['w.npz', '--dataset=digits']),
):
  try:
    command(arguments)
  except SystemExit as error:
    assert error.code == 2, error.code
  else:
    raise AssertionError""",
    tmp_path,
  )
  assert printed.count('error: TensorFlow is not installed. vit_jax needs') == 4
  assert 'pip install tensorflow' in printed
  assert 'Traceback' not in printed


def test_a_run_is_loaded_used_and_exported(finished_run, tmp_path):
  model = vit_jax.load(finished_run.workdir)
  images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3))
  np.save(tmp_path / 'images.npy', images)
  printed = run(
    """
import numpy as np
import vit_jax
from vit_jax import console
from vit_jax.cost import memory
from vit_jax.export import formats
from vit_jax.run import metric_log
source, folder = sys.argv[1:]
images = np.load(f'{folder}/images.npy')
trained = vit_jax.load(source)
for suffix in ('npz', 'safetensors'):
  formats.export(trained, f'{folder}/w.{suffix}')
trained = vit_jax.load(f'{folder}/w.npz')
np.savez(f'{folder}/out.npz', logits=trained.logits(images),
         features=trained.features(images))
trained.classify(images)
try:
  trained.classify([f'{folder}/photo.png'])
except ValueError as error:
  assert 'TensorFlow is not installed. vit_jax needs it to' in str(error)
else:
  raise AssertionError
assert memory.available() > 1e8

console.start_logging(folder)
with metric_log.MetricLog(folder, 0) as metrics:
  metrics.write(1, {'loss_test': 2.0})
  metrics.write(1, {'accuracy_test': 0.5})  # writes the file again
  metrics.draw()
with metric_log.MetricLog(folder, 1) as metrics:
  metrics.write(2, {'loss_test': 1.0})
print(metric_log.read(f'{folder}/metrics.jsonl'))""",
    finished_run.workdir,
    tmp_path,
  )
  found = np.load(tmp_path / 'out.npz')
  np.testing.assert_allclose(found['logits'], model.logits(images), atol=1e-5)
  np.testing.assert_allclose(
    found['features'], model.features(images), atol=1e-5
  )
  exported = vit_jax.load(tmp_path / 'w.safetensors')
  np.testing.assert_array_equal(exported.logits(images), model.logits(images))
  assert "'accuracy_test': 0.5}, {'step': 2, 'loss_test': 1.0}]" in printed
  assert printed.count('no files for TensorBoard') == 2  # once for each start
  assert (tmp_path / 'progress.png').stat().st_size > 1000
  assert not list(tmp_path.glob('*tfevents*'))
