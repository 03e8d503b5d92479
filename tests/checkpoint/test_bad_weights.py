"""Weights that are not finite floats are rejected in every format."""

import json
import os
import re

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import weights_file


def make_arrays(**changed):
  return {
    'embedding/kernel': np.ones((2, 3), np.float32),
    'head/bias': np.arange(4, dtype=np.float32),
    **changed,
  }


def save_npz(folder, arrays):
  np.savez(folder / 'w.npz', **arrays)
  return folder / 'w.npz'


def save_npz_of_big_vision(folder, arrays):
  np.savez(
    folder / 'w.npz',
    **{
      'opt/step': np.int32(7),
      'opt/mu': np.float32(np.nan),
      **{f'params/{name}': array for name, array in arrays.items()},
    },
  )
  return folder / 'w.npz'


def save_safetensors(folder, arrays):
  safetensors.numpy.save_file(arrays, folder / 'w.safetensors')
  return folder / 'w.safetensors'


def save_shards(folder, arrays):
  names = {name: f'part{i}.safetensors' for i, name in enumerate(arrays)}
  for name, file in names.items():
    safetensors.numpy.save_file({name: arrays[name]}, folder / file)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': names})
  )
  return folder


def save_run(folder, arrays):
  item = folder / 'checkpoints/3/state'
  params = {name.replace('/', '.'): array for name, array in arrays.items()}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(item, {'params': params})
  checksums.write_checksums(item)
  (folder / 'checkpoints/3/_CHECKPOINT_METADATA').write_text('{}')
  return folder


LAYOUTS = (
  save_npz,
  save_npz_of_big_vision,
  save_safetensors,
  save_shards,
  save_run,
)


def with_value(value, dtype=np.float32):
  array = np.zeros(4, dtype)
  array[2] = value
  return array


@pytest.mark.parametrize('save', LAYOUTS)
@pytest.mark.parametrize(
  'array, reason',
  [
    (with_value(np.nan), '1 of 4 values that are NaN or infinite'),
    (with_value(-np.inf), '1 of 4 values that are NaN or infinite'),
    (with_value(3, np.int32), 'is int32'),
    (with_value(True, bool), 'is bool'),
  ],
  ids=['nan', 'inf', 'int', 'bool'],
)
def test_bad_weights_are_rejected(tmp_path, save, array, reason):
  path = save(tmp_path, make_arrays(**{'head/bias': array}))
  with pytest.raises(
    ValueError,
    match=(
      f'{re.escape(os.fspath(tmp_path))}.*: the array head.bias .*{reason}'
    ),
  ):
    weights_file.load(path)


@pytest.mark.parametrize(
  'array, reason',
  [
    (with_value(1j, np.complex64), 'is complex64'),
    (np.array(['1.5', '2']), 'is str'),
    (np.zeros(3, 'V4'), 'is void32'),
    (with_value(1e300, np.float64), '1 of 4 values that are .* in float32'),
    (with_value(np.nan, ml_dtypes.bfloat16).view('V2'), '1 of 4 values'),
    (with_value(np.inf, np.float16), '1 of 4 values'),
  ],
  ids=str,
)
def test_bad_weights_that_only_npz_can_contain(tmp_path, array, reason):
  path = save_npz(tmp_path, make_arrays(**{'head/bias': array}))
  with pytest.raises(
    ValueError, match=(f'w.npz: the array head/bias .*{reason}')
  ):
    weights_file.load(path)


@pytest.mark.parametrize('save', LAYOUTS)
@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.float64])
def test_floats_are_loaded_unchanged(tmp_path, save, dtype):
  values = np.array([-1.5, 0, 6e4, 2.0**-14], dtype)
  path = save(tmp_path, make_arrays(**{'head/bias': values}))
  loaded = weights_file.flatten(weights_file.load(path))
  found = loaded[next(name for name in loaded if name.startswith('head'))]
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, values)


def test_empty_arrays_and_the_largest_floats_are_finite(tmp_path):
  arrays = {
    'a': np.zeros((0, 3), np.float32),
    'b': np.full(1000, np.finfo(np.float32).max),
  }
  loaded = weights_file.load(save_npz(tmp_path, arrays))
  np.testing.assert_array_equal(loaded['b'], arrays['b'])
