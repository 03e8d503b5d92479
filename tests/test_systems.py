"""The package works without TensorFlow, and without modules of POSIX.

A process simulates a machine where these modules cannot be imported, and where
Python has no `signal.SIGHUP` and no `os.sysconf`, as on Windows.
"""

import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests import digits_run
from tests import ROOT
import vit_jax
from vit_jax.data.given import encoded_images
from vit_jax.run.writers import metric_log

# Every finder answers that there is no such module, as without the package.
MISSING = """
import os, signal, sys
import psutil  # on Linux, it uses `resource`
MISSING = {'tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'keras',
           'fcntl', 'resource', 'pwd', 'grp', 'termios'}
MISSING.update(filter(None, sys.argv.pop(1).split(',')))

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


# What else `pip install jax flax optax orbax-checkpoint ml_collections pillow`
# does not install.
NOT_SMALL = (
  *('clu', 'tensorboard', 'matplotlib', 'tqdm', 'safetensors'),
  *('filelock', 'requests', 'huggingface_hub'),
)


def run(code, *arguments, missing=()):
  """Runs code on the simulated machine; returns what it printed."""
  names = ','.join(missing)
  done = subprocess.run(
    [sys.executable, '-c', MISSING + code, names, *map(str, arguments)],
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
  # Only the commands that draw need matplotlib.
  draws = {'figures', 'report'} & set(path.parts)
  if path.name != '__main__.py' and not draws:
    importlib.import_module('.'.join(path.with_suffix('').parts))
assert not MISSING & set(sys.modules), MISSING & set(sys.modules)

from vit_jax import main
from vit_jax.commands import look, predict, report
run = ['--config=configs/quickstart.py', f'--workdir={sys.argv[1]}']
for command, arguments in (
  (main.main, run),
  (main.main, [*run, '--dry_run']),
  (predict.main, ['w.npz', 'photo.png']),
  (look.main, ['w.npz', 'photo.png']),
  (report.main, [sys.argv[1]]),
):
  try:
    command(arguments)
  except SystemExit as error:
    assert error.code == 2, error.code
  else:
    raise AssertionError""",
    tmp_path,
    missing=NOT_SMALL,
  )
  assert printed.count('error: TensorFlow is not installed. vit_jax needs') == 3
  assert 'pip install tensorflow' in printed
  assert printed.count('error: matplotlib is not installed') == 2
  assert 'Traceback' not in printed


@pytest.mark.slow
def test_a_model_is_used_and_a_run_trains(finished_run, tmp_path):
  model = vit_jax.load(finished_run.workdir)
  images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3))
  np.save(tmp_path / 'images.npy', images)
  printed = run(
    """
import numpy as np
import vit_jax
from vit_jax.cost import memory
from vit_jax.export import formats
source, photo, folder = sys.argv[1:]
images = np.load(f'{folder}/images.npy')
trained = vit_jax.load(source)
for suffix in ('npz', 'safetensors'):
  formats.export(trained, f'{folder}/w.{suffix}')
trained = vit_jax.load(f'{folder}/w.npz')
np.savez(f'{folder}/out.npz', logits=trained.logits(images),
         features=trained.features(images))
trained.classify(images)
try:
  trained.classify([photo])
except ValueError as error:
  assert 'TensorFlow is not installed. vit_jax needs it to' in str(error)
else:
  raise AssertionError
assert memory.available() > 1e8

from tests import digits_run
arrays = digits_run.arrays()
config = digits_run.make_config(total_steps=4, checkpoint_every=2)
config.pp.update(dict(min_area=1.0, flip=False))
def train(*hooks):
  vit_jax.train_and_evaluate(
    config, f'{folder}/run', hooks=hooks,
    data=vit_jax.data.from_arrays(*arrays['train'], test=arrays['test']))
try:
  train(digits_run.interrupt_at(3))
except digits_run.Interrupted:
  train()
trained = vit_jax.load(f'{folder}/run')
assert trained.logits(np.zeros((1, 8, 8, 3))).shape == (1, 10)""",
    finished_run.workdir,
    finished_run.photos / 'test/bark/0.png',
    tmp_path,
  )
  found = np.load(tmp_path / 'out.npz')
  np.testing.assert_allclose(found['logits'], model.logits(images), atol=1e-5)
  np.testing.assert_allclose(
    found['features'], model.features(images), atol=1e-5
  )
  exported = vit_jax.load(tmp_path / 'w.safetensors')
  np.testing.assert_array_equal(exported.logits(images), model.logits(images))
  assert printed.count('no files for TensorBoard') == 2  # once for each start
  assert 'tensorboard --logdir' not in printed
  rows = metric_log.read(tmp_path / 'run/metrics.jsonl')
  assert rows[-1]['step'] == 4 and 'accuracy_test' in rows[-1]
  assert (tmp_path / 'run/progress.png').stat().st_size > 1000
  assert not list((tmp_path / 'run').glob('*tfevents*'))


@pytest.mark.slow
def test_a_small_installation_trains_on_a_file(tmp_path):
  """The file has encoded images. The run is stopped, resumed and evaluated."""
  found = {}
  for split, start in (('train', ''), ('test', 'test_')):
    images, labels = digits_run.arrays()[split]
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
      Image.fromarray(image[..., 0]).save(file, 'PNG')
    content, offsets = encoded_images.join([x.getvalue() for x in files])
    found |= {f'{start}image': content, f'{start}image_offsets': offsets}
    found |= {f'{start}label': labels}
  np.savez(tmp_path / 'digits.npz', **found)
  printed = run(
    """
import vit_jax
from tests import digits_run
from vit_jax import main
from vit_jax.commands import evaluate
folder = sys.argv[1]
config = digits_run.make_config(
  data_on='device', dataset=f'{folder}/digits.npz', total_steps=4,
  checkpoint_every=2)
try:
  vit_jax.train_and_evaluate(
    config, f'{folder}/run', hooks=[digits_run.interrupt_at(3)])
except digits_run.Interrupted:
  result = vit_jax.train_and_evaluate(config, f'{folder}/run')
assert evaluate.main([f'{folder}/run', '--json']) == 0
main.main(['--config=configs/cifar10_scratch.py:cpu', '--dry_run',
           f'--config.dataset={folder}/digits.npz', '--config.batch=16'])

from vit_jax import console
assert list(console.Bar(iter('ab'), desc='counting')) == ['a', 'b']
with console.Bar(desc='receiving', total=3, unit='B', unit_scale=True) as bar:
  bar.update(2)
with console.counter(3, 0, 'predicting', ' images') as count:
  count(2)
assert not MISSING & set(sys.modules), MISSING & set(sys.modules)""",
    tmp_path,
    missing=(*NOT_SMALL, 'sklearn'),
  )
  assert printed.count('without clu and tensorboard and tensorflow') == 2
  assert (
    printed.count('without matplotlib, the run writes no progress.png') == 2
  )
  assert 'tensorboard --logdir' not in printed and 'Traceback' not in printed
  assert 'memory per device in training, 2 image(s)' in printed  # of 16
  tested = json.loads((tmp_path / 'run/evaluations.jsonl').read_text())
  rows = metric_log.read(tmp_path / 'run/metrics.jsonl')
  assert tested['accuracy'] == rows[-1]['accuracy_test']
