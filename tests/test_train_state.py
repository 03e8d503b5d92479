import os

import jax
import numpy as np
import optax
import pytest

from vit_jax import models
from vit_jax import sharding
from vit_jax import train_state


def make_init_fn(num_devices=1):
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  model = models.get_model('testing', num_classes=3)
  tx = optax.sgd(0.1, momentum=0.9, accumulator_dtype='bfloat16')
  return train_state.make_init_fn(model, tx, (32, 32), mesh)


def make_state(seed):
  return make_init_fn()(jax.random.key(seed))


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_saved_on_one_device_restored_on_eight(tmp_path):
  state = make_state(1).replace(step=jax.numpy.int32(12))
  checkpoints = train_state.Checkpoints(tmp_path, keep=2)
  assert checkpoints.latest_step() is None
  checkpoints.save(12, state)
  checkpoints.close()

  restored = train_state.Checkpoints(tmp_path, keep=2).restore(make_init_fn(8))
  equal(restored, state)
  kernel = restored.params['head']['kernel']
  assert len(kernel.sharding.device_set) == 8
  dtypes = {str(x.dtype) for x in jax.tree.leaves(restored.opt_state)}
  assert 'bfloat16' in dtypes


def test_what_is_being_written_does_not_change_when_training_goes_on(tmp_path):
  """Steps donate their state while Orbax may still be writing it."""
  state = make_state(1)
  expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpoints = train_state.Checkpoints(tmp_path, keep=1)
  checkpoints.save(1, state)
  for _ in range(20):
    state = step(state)
  checkpoints.close()
  equal(train_state.Checkpoints(tmp_path, keep=1).restore(make_init_fn()),
        expected)


def test_only_the_newest_are_kept(tmp_path):
  checkpoints = train_state.Checkpoints(tmp_path, keep=2)
  state = make_state(1)
  for step in (1, 2, 3):
    checkpoints.save(step, state)
  checkpoints.close()
  assert sorted(os.listdir(tmp_path)) == ['2', '3']


def damage_by_removing_half(folder):
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  for path in files[::2]:
    path.unlink()


def damage_by_truncating(folder):
  largest = max((p for p in folder.rglob('*') if p.is_file()),
                key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.parametrize('damage', [
    damage_by_removing_half, damage_by_truncating])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
  checkpoints = train_state.Checkpoints(tmp_path, keep=2)
  state = make_state(1)
  checkpoints.save(1, state)
  checkpoints.save(2, state)
  checkpoints.close()
  damage(tmp_path / '2')
  with pytest.raises(ValueError, match=(
      f'{tmp_path}/2 cannot be .*remove that folder to go on from step 1')):
    train_state.Checkpoints(tmp_path, keep=2).restore(make_init_fn())
  assert (tmp_path / '1').is_dir()
