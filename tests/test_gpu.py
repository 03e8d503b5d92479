"""Tests for a GPU: `benchmarks/gpu.sh tests FOLDER`.

They have the marker `gpu`. The tests of the fused kernel fail without a GPU.
The others also run on a CPU, which is their rehearsal.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ROOT
import vit_jax
from vit_jax import models
from vit_jax.models.layers import attention

pytestmark = pytest.mark.gpu

# --- attention ---------------------------------------------------------------

SHAPES = {  # [B, T, H, d], and whether a bias is added
  'B/16 at 224': ((2, 197, 12, 64), False),
  'B/16 at 384': ((2, 577, 12, 64), False),
  'S/4 at 32': ((4, 64, 6, 64), False),
  'H/14 at 224': ((2, 257, 16, 80), False),
  'relative positions': ((2, 196, 6, 64), True),
}


def random_inputs(shape, has_bias):
  """Returns query, key, value and perhaps a bias, and weights of outputs."""
  _, tokens, heads, _ = shape
  shapes = [shape] * 3 + [(1, heads, tokens, tokens)] * has_bias
  *inputs, weights = (
    jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
    for i, shape in enumerate([*shapes, shape])
  )
  return inputs, weights


def outputs_and_grads(attend, inputs, weights):
  """Returns the outputs, and the gradients of their weighted sum."""

  def run(inputs, weights):
    outputs, pull_back = jax.vjp(attend, *inputs)
    return outputs, *pull_back(weights)

  return [np.asarray(x, np.float32) for x in jax.jit(run)(inputs, weights)]


def plain(*inputs):
  return attention.plain(*inputs)[0]


def errors(found, expected):
  return [
    np.linalg.norm(a - b) / np.linalg.norm(b)
    for a, b in zip(found, expected, strict=True)
  ]


def plain_errors(inputs, weights):
  """Returns (errors of plain attention in bfloat16, exact values)."""
  with jax.default_matmul_precision('highest'):
    exact = outputs_and_grads(
      plain,
      [x.astype(jnp.float32) for x in inputs],
      weights.astype(jnp.float32),
    )
  found = outputs_and_grads(plain, inputs, weights)
  return errors(found, exact), exact


def test_plain_attention_in_half_precision():
  found, _ = plain_errors(*random_inputs(*SHAPES['S/4 at 32']))
  assert max(found) < 0.02, found


@pytest.mark.parametrize('name', SHAPES)
def test_fused_attention_equals_plain_attention(name):
  assert jax.default_backend() == 'gpu', 'the fused kernel needs an NVIDIA GPU'
  inputs, weights = random_inputs(*SHAPES[name])
  of_plain, exact = plain_errors(inputs, weights)
  of_fused = errors(outputs_and_grads(attention.fused, inputs, weights), exact)
  assert max(of_fused) < 0.02, of_fused
  for fused, other in zip(of_fused, of_plain, strict=True):
    assert fused < 2 * other, (of_fused, of_plain)


def test_fused_attention_is_the_default_of_models():
  assert jax.default_backend() == 'gpu', 'the fused kernel needs an NVIDIA GPU'
  model = models.get_model(
    'ViT-B_16', num_classes=10, num_layers=1, dtype='bfloat16'
  )
  images = jnp.zeros((2, 224, 224, 3))
  params = model.init(jax.random.key(0), images, train=False)

  def loss(params):
    return model.apply(params, images, train=True).sum()

  text = jax.jit(jax.grad(loss)).lower(params).as_text()
  assert '__cudnn$fmhaSoftmax' in text
  assert '__cudnn$fmhaSoftmaxBackward' in text


# --- training ----------------------------------------------------------------

SMALL = dict(
  patch_size=8,
  hidden_size=64,
  mlp_dim=128,
  num_heads=2,
  num_layers=2,
  dtype='bfloat16',
)


@pytest.fixture(name='dataset', scope='module')
def fixture_dataset(tmp_path_factory):
  """Returns the path of noisy images; their mean color depends on the class."""
  rng = np.random.default_rng(0)
  arrays = {}
  for start, count in (('', 256), ('test_', 64)):
    label = rng.integers(10, size=count)
    colors = np.random.default_rng(1).uniform(0, 120, (10, 1, 1, 3))
    pixels = rng.uniform(0, 135, (count, 32, 32, 3)) + colors[label]
    arrays |= {f'{start}image': pixels.astype(np.uint8), f'{start}label': label}
  path = tmp_path_factory.mktemp('data') / 'colors.npz'
  np.savez(path, **arrays)
  return str(path)


def small_config(name, dataset, **settings):
  """Returns a config of the folder `configs`, for a small model."""
  config = vit_jax.get_config(str(ROOT / 'configs' / name))
  config.model.update(SMALL)
  config.pp.update(
    dict(
      crop=32,
      resize='squash',
      crop_fraction=1.0,
      interpolation='bilinear',
      train_interpolation='bilinear',
    )
  )
  config.update(
    dict(
      dataset=dataset,
      data_on='device',
      train_split='train',
      test_split='test',
      batch=32,
      batch_eval=64,
      accum_steps=1,
      total_epochs=0.0,
      total_steps=6,
      warmup_epochs=0.0,
      warmup_steps=2,
      log_every=1,
      eval_every=0,
      checkpoint_every=4,
    )
  )
  config.update(settings)
  return config


def losses_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array([json.loads(line)['train_loss'] for line in lines])


@pytest.mark.parametrize(
  'name',
  [
    'augreg_i1k.py:S_16,medium2',
    'plain_s16_i1k.py',
    'deit.py:s16',
    'deit3.py:s16',
    'sam_i1k.py:S_16,gsam',
    'cifar10_scratch.py',
  ],
)
def test_recipe_trains(name, dataset, tmp_path):
  accum_steps = 2 if name.startswith('sam') else 1
  config = small_config(name, dataset, accum_steps=accum_steps)
  result = vit_jax.train_and_evaluate(config, str(tmp_path))
  losses = losses_of(tmp_path)
  assert len(losses) == 6 and np.isfinite(losses).all()
  assert 0 <= result.metrics['accuracy_test'] <= 1
  assert result.metrics['loss_test'] < 2 * losses[0]


def test_bfloat16_follows_float32(dataset, tmp_path):
  losses = {}
  for dtype in ('float32', 'bfloat16'):
    config = small_config(
      'plain_s16_i1k.py', dataset, total_steps=40, base_lr=3e-3
    )
    config.augment.update(dict(policy='', mixup=0.0))
    config.model.dtype = dtype
    vit_jax.train_and_evaluate(config, str(tmp_path / dtype))
    losses[dtype] = losses_of(tmp_path / dtype)
  assert losses['float32'][-1] < 0.5 * losses['float32'][0]
  difference = np.abs(losses['bfloat16'] - losses['float32'])
  assert difference.max() < 0.05 * losses['float32'][0], difference


def train_and_hash(dataset, workdir, kill_at):
  """Trains, and prints a hash of the final state; may kill this process."""

  def hook(step, state, metrics):
    if step == kill_at:
      while not os.path.exists(f'{workdir}/checkpoints/4/_CHECKPOINT_METADATA'):
        time.sleep(0.1)
      os.kill(os.getpid(), signal.SIGKILL)

  config = small_config('cifar10_scratch.py', dataset, total_steps=10)
  state = vit_jax.train_and_evaluate(config, workdir, hooks=[hook]).state
  content = b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))
  print('hash', hashlib.sha256(content).hexdigest())


def test_resume_after_a_kill_gives_the_same_bits(dataset, tmp_path):
  def run(folder, kill_at):
    code = (
      'from tests import test_gpu\n'
      f'test_gpu.train_and_hash({dataset!r}, {str(folder)!r}, {kill_at})'
    )
    return subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )

  whole = run(tmp_path / 'whole', 0)
  killed = run(tmp_path / 'resumed', 6)
  resumed = run(tmp_path / 'resumed', 0)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert 'resuming from step 4 ' in resumed.stderr, resumed.stderr
  (expected,) = [x for x in whole.stdout.splitlines() if x.startswith('hash')]
  assert expected in resumed.stdout.splitlines(), resumed.stdout
