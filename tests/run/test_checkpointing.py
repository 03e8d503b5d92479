import math
import os
import shutil
import time

import jax
import numpy as np
import optax
import pytest

from tests import classifier
from vit_jax import models
from vit_jax.checkpoint import checksums
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing


def make_init_fn(num_devices=1):
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  model = models.get_model('testing', num_classes=3)
  tx = optax.sgd(0.1, momentum=0.9, accumulator_dtype='bfloat16')
  return classifier.make_init_fn(model, tx, (32, 32), mesh)


def make_state(seed):
  return make_init_fn()(jax.random.key(seed))


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_saved_on_one_device_restored_on_eight(tmp_path):
  state = make_state(1).replace(step=jax.numpy.int32(12))
  checkpoints = checkpointing.Checkpoints(tmp_path, keep=2)
  assert checkpoints.latest_step() is None
  checkpoints.save(12, state)
  checkpoints.close()

  restored = checkpointing.Checkpoints(tmp_path, keep=2).restore(
    12, make_init_fn(8)
  )
  equal(restored, state)
  kernel = restored.params['head']['kernel']
  assert len(kernel.sharding.device_set) == 8
  dtypes = {str(x.dtype) for x in jax.tree.leaves(restored.opt_state)}
  assert 'bfloat16' in dtypes


def test_training_does_not_change_a_checkpoint_being_written(tmp_path):
  """A step donates its state while Orbax may still write this state."""
  state = make_state(1)
  expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpoints = checkpointing.Checkpoints(tmp_path, keep=1)
  checkpoints.save(1, state)
  for _ in range(20):
    state = step(state)
  checkpoints.close()
  equal(
    checkpointing.Checkpoints(tmp_path, keep=1).restore(1, make_init_fn()),
    expected,
  )


def test_only_the_newest_are_kept(tmp_path):
  checkpoints = checkpointing.Checkpoints(tmp_path, keep=2)
  state = make_state(1)
  for step in (1, 2, 3):
    checkpoints.save(step, state)
  checkpoints.close()
  assert sorted(os.listdir(tmp_path)) == ['2', '3']


def remove(path):
  path.unlink()


def truncate(path):
  os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def files_of(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


@pytest.fixture(name='saved', scope='module')
def fixture_saved(tmp_path_factory):
  """Returns a folder with checkpoints of steps 1, 2 and 3."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = checkpointing.Checkpoints(folder, keep=3)
  for step in (1, 2, 3):
    checkpoints.save(step, make_state(step))
  checkpoints.close()
  return folder


@pytest.mark.parametrize('damage', [remove, truncate, flip_a_bit])
def test_damage_of_any_file_is_found_before_it_is_read(
  saved, tmp_path, damage, capsys
):
  """The newest intact checkpoint is used, and damaged ones are kept."""
  needed = [
    p for p in files_of(saved / '3/state') if p.name != 'commit_success.txt'
  ]  # this file is empty and never read
  assert len(needed) > 5
  for i, path in enumerate(needed):
    folder = tmp_path / str(i) / 'checkpoints'
    shutil.copytree(saved, folder)
    damage(folder / path.relative_to(saved))
    checkpoints = checkpointing.Checkpoints(folder, keep=3)
    assert checkpoints.set_damaged_aside() == 2
    assert checkpoints.latest_step() == 2
    name = path.relative_to(saved / '3/state')
    output = capsys.readouterr().err
    assert f'{folder}_damaged/3. Resuming from step 2' in output
    # If the list of checksums is damaged, the message names another file.
    assert str(name) in output or str(name) == checksums.SEAL
    assert sorted(p.name for p in folder.iterdir()) == ['1', '2']
    assert len(files_of(tmp_path / f'{i}/checkpoints_damaged/3')) >= (
      len(files_of(saved / '3')) - 1
    )
    if not i:
      equal(checkpoints.restore(2, make_init_fn()), make_state(2))
      checkpoints.save(3, make_state(3))  # the path is free again
      checkpoints.close()
      assert checkpointing.Checkpoints(folder, keep=3).set_damaged_aside() == 3


def test_a_damaged_best_checkpoint_is_found_if_the_newest_is_intact(
  saved, tmp_path, capsys
):
  """If a damaged checkpoint counted as the best, no worse one would be kept."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  truncate(folder / '1/state/manifest.ocdbt')
  rows = [{'step': step, 'loss_test': step} for step in (1, 2, 3)]
  checkpoints = checkpointing.Checkpoints(folder, 3, 'loss_test', 'min', rows)
  other = checkpointing.Checkpoints(folder, 3, 'loss_test', 'min', rows)
  assert checkpoints.best_step() == 1
  assert checkpoints.set_damaged_aside() == 3
  assert checkpoints.best_step() == 2
  output = capsys.readouterr().err
  assert output.count('\n') == 1 and 'manifest.ocdbt' in output
  assert f'{folder}_damaged/1. Resuming from step 3' in output
  other.reload()
  assert other.best_step() == 2


@pytest.mark.parametrize('content', [None, b'', b'{"item_handlers": {"sta'])
def test_the_metadata_of_orbax_may_be_damaged(saved, tmp_path, content):
  """`_CHECKPOINT_METADATA` has no checksum and is not needed."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  note = folder / '3/_CHECKPOINT_METADATA'
  note.unlink() if content is None else note.write_bytes(content)
  checkpoints = checkpointing.Checkpoints(folder, keep=3)
  assert checkpoints.set_damaged_aside() == 3
  equal(checkpoints.restore(3, make_init_fn()), make_state(3))


def test_invalid_metadata_of_orbax_is_an_error(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  note = folder / '3/_CHECKPOINT_METADATA'
  note.write_text('[]')
  with pytest.raises(ValueError, match=f'{note} is damaged. Remove it'):
    checkpointing.Checkpoints(folder, keep=3)


def test_a_run_does_not_restart_if_all_checkpoints_are_damaged(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  for step in (1, 2, 3):
    remove(folder / f'{step}/state/manifest.ocdbt')
  with pytest.raises(
    ValueError,
    match=(
      'all checkpoints are damaged: .* step 3 .*manifest.ocdbt .*'
      f'No such file.*{folder}_damaged/3.*step 2.*step 1.* from step 0'
    ),
  ):
    checkpointing.Checkpoints(folder, keep=3).set_damaged_aside()
  assert len(os.listdir(f'{folder}_damaged')) == 3


def test_a_state_with_other_shapes_is_rejected(saved):
  model = models.get_model('testing', num_classes=4)
  init_fn = classifier.make_init_fn(
    model,
    optax.sgd(0.1, momentum=0.9, accumulator_dtype='bfloat16'),
    (32, 32),
    sharding.make_mesh(jax.devices()[:1]),
  )
  with pytest.raises(
    ValueError,
    match=(
      rf'{saved}/3 has other arrays .*\n  of another shape .*params/head/bias '
      r'.float32 .3. in the checkpoint, float32 .4. now'
    ),
  ):
    checkpointing.Checkpoints(saved, keep=3).restore(3, init_fn)


@pytest.mark.parametrize(
  'metric, values, kept',
  [
    ('accuracy_test', [0.5, 0.9, 0.7, 0.9, 0.1], ['2', '5']),
    ('accuracy_test', [0.5, 0.9, 0.7, 0.9], ['4']),  # newest of equal values
    ('loss_test', [0.5, 0.3, 0.7, 0.2, 0.1], ['5']),
    ('loss_test', [0.5, 0.1, None, 0.2, None], ['2', '5']),
  ],
)
def test_the_best_and_the_newest_are_kept(tmp_path, metric, values, kept):
  """The folder is opened again before each step. Some steps have no metrics."""
  state, rows = make_state(1), []
  for step, value in enumerate(values, start=1):
    numbers = {} if value is None else {metric: value, 'other_test': -step}
    direction = 'min' if metric == 'loss_test' else 'max'
    checkpoints = checkpointing.Checkpoints(
      tmp_path, 1, metric, direction, rows
    )
    rows.append({'step': step, **numbers})
    if checkpoints.is_best(numbers) or step == len(values):
      checkpoints.save(step, state, numbers)
    checkpoints.close()
  assert sorted(os.listdir(tmp_path)) == kept
  assert checkpoints.best_step() == int(kept[0])


def test_the_best_is_known_while_it_is_being_written(tmp_path, monkeypatch):
  seal = checksums.write_checksums
  monkeypatch.setattr(
    checksums, 'write_checksums', lambda folder: (time.sleep(0.5), seal(folder))
  )
  checkpoints = checkpointing.Checkpoints(tmp_path, 1, 'accuracy_test')
  checkpoints.save(1, make_state(1), {'accuracy_test': 0.5})
  assert not checkpoints.is_best({'accuracy_test': 0.4})
  assert checkpoints.is_best({'accuracy_test': 0.6})
  assert not checkpoints.is_best({'accuracy_test': math.nan})
  with pytest.raises(ValueError, match='accuracy_test.* not one of.* loss_tes'):
    checkpoints.is_best({'loss_test': 1.0})
  checkpoints.close()


def test_a_step_saved_before_its_evaluation_may_become_the_best(tmp_path):
  """This happens after SIGTERM in the middle of an evaluation."""
  state = make_state(1)
  checkpoints = checkpointing.Checkpoints(tmp_path, 1, 'accuracy_test')
  checkpoints.save(1, state, {'accuracy_test': 0.5})
  checkpoints.save(2, state, {})
  checkpoints.close()
  checkpoints = checkpointing.Checkpoints(
    tmp_path, 1, 'accuracy_test', rows=[{'step': 1, 'accuracy_test': 0.5}]
  )
  assert checkpoints.best_step() == 1
  checkpoints.save(2, state, {'accuracy_test': 0.7})
  assert checkpoints.best_step() == 2
  checkpoints.save(3, state, {'accuracy_test': 0.6})
  checkpoints.close()
  assert sorted(os.listdir(tmp_path)) == ['2', '3']


def test_errors_of_the_storage_contain_the_fix(tmp_path, monkeypatch):
  checkpoints = checkpointing.Checkpoints(tmp_path, 1)

  def full(*_, **__):
    raise ValueError('RESOURCE_EXHAUSTED: Error writing "x"\nand more')

  monkeypatch.setattr(checkpoints._manager, 'save', full)
  with pytest.raises(
    OSError,
    match=f'cannot be written to {tmp_path} .the disk is full.*same command',
  ):
    checkpoints.save(1, make_state(1))


def test_a_folder_that_cannot_be_written_is_found_at_the_start(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match=f'{tmp_path}/file is not a folder'):
    checkpointing.Checkpoints(tmp_path / 'file', 1)
  (tmp_path / 'link').symlink_to('nowhere/at/all')
  with pytest.raises(OSError, match=f'{tmp_path}/link is not a folder'):
    checkpointing.Checkpoints(tmp_path / 'link', 1)
  with pytest.raises(OSError, match='written to /proc/checkpoints: No such'):
    checkpointing.Checkpoints('/proc/checkpoints', 1)


def test_a_full_disk_is_an_error_before_the_run(saved, monkeypatch):
  state = make_state(1)
  checkpoints = checkpointing.Checkpoints(saved, keep=3)
  checkpoints.check_room(state)
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(size, 1, size - 1)
  )
  needed = f'{size / 1e6:.1f} MB'
  with pytest.raises(OSError, match=f'{needed}, .* free in {saved}.*workdir='):
    checkpoints.check_room(state)
