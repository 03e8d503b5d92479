"""The results of a run do not depend on environment variables."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import digits_run
from tests import ROOT
from vit_jax import train
from vit_jax.checkpoint import weights_file
from vit_jax.cost import dry_run
from vit_jax.parallel import numerics
from vit_jax.run import evaluation

HOSTILE = {
  'JAX_ENABLE_X64': '1',
  'JAX_DEFAULT_PRNG_IMPL': 'rbg',
  'JAX_THREEFRY_PARTITIONABLE': '0',
  'JAX_RANDOM_SEED_OFFSET': '5',
  'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
  'JAX_NUMPY_RANK_PROMOTION': 'raise',
  'PYTHONHASHSEED': '7',
  'TZ': 'Asia/Tokyo',
  'LC_ALL': 'C',
  'PYTHONCOERCECLOCALE': '0',
  'PYTHONUTF8': '0',
  'PYTHONIOENCODING': 'ascii',
  'OMP_NUM_THREADS': '1',
}


def numbers_of(workdir):
  return digits_run.without_rates(digits_run.rows_of(workdir))


@pytest.mark.slow
def test_options_of_jax_change_no_bit(finished, tmp_path):
  config = digits_run.make_config()
  with (
    jax.enable_x64(True),
    jax.default_prng_impl('rbg'),
    jax.threefry_partitionable(False),
    jax.numpy_dtype_promotion('strict'),
  ):
    state, *_ = train.train_and_evaluate(config, str(tmp_path))
    evaluated = evaluation.evaluate_only(config, str(tmp_path))
    dry_run.show(config)
  digits_run.assert_equal(state, finished[1])
  assert numbers_of(tmp_path) == numbers_of(finished[0])
  assert evaluated['loss'] == finished[2]['loss_test']


def test_keys_are_those_of_jax():
  for seed in (0, 7, 2**31, 2**32 - 1):
    np.testing.assert_array_equal(
      jax.random.key_data(numerics.random_key(seed)),
      jax.random.key_data(jax.random.key(seed)),
    )


@pytest.mark.slow
@pytest.mark.parametrize('options', [[], ['-OO']], ids=['asserts', 'none'])
def test_variables_of_the_environment_change_no_bit(
  options, finished, tmp_path
):
  done = subprocess.run(
    [
      sys.executable,
      *options,
      '-c',
      f"""
from tests.digits_run import train
from vit_jax import console
console.start_logging({str(tmp_path)!r})
console.log_info('caf\\xe9')
train({str(tmp_path)!r})""",
    ],
    cwd=ROOT,
    env={**os.environ, **HOSTILE, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    check=True,
  )
  assert b'done: ' in done.stderr and b'caf\\xe9' in done.stderr
  assert 'café' in (tmp_path / 'log.txt').read_text(encoding='utf-8')
  a, b = (
    weights_file.load(os.path.join(folder, 'checkpoints/8'))
    for folder in (tmp_path, finished[0])
  )
  digits_run.assert_equal(a, b)
  assert {x.dtype for x in jax.tree.leaves(a)} == {np.dtype('float32')}
  assert numbers_of(tmp_path) == numbers_of(finished[0])
  for name in ('config.json', 'class_names.json', 'data.json'):
    assert (tmp_path / name).read_bytes() == (
      pathlib.Path(finished[0]) / name
    ).read_bytes()


@pytest.mark.slow
def test_keras_is_imported_only_when_it_is_used():
  code = """
import os, sys
from vit_jax.data import tensorflow
tensorflow.load()
assert 'keras' not in sys.modules
assert 'TF_USE_LEGACY_KERAS' not in os.environ
import tensorflow as tf
tf.keras.layers.Dense(2)"""
  subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
