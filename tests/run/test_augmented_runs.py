"""Runs with `config.augment`."""

import json

import jax
import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests.digits_run import assert_equal
from tests.digits_run import interrupt_at
from tests.digits_run import Interrupted
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import without_rates
import vit_jax
from vit_jax import data as vit_data
from vit_jax import train
from vit_jax.augment import augreg_levels
from vit_jax.parallel import sharding
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.tasks import linear_probe
from vit_jax.tasks import multi_label
from vit_jax.tasks import regression
from vit_jax.tasks import task

pytestmark = pytest.mark.slow


def make_augmented(**settings):
  config = make_config(**settings)
  config.model.dropout_rate = 0.0
  config.augment.update(dict(pad=1, jitter=0.3, mixup=0.4, mix_off=0.25))
  return config


@pytest.fixture(name='augmented', scope='module')
def fixture_augmented(tmp_path_factory):
  """Returns (workdir, state) of a finished run."""
  workdir = tmp_path_factory.mktemp('augmented')
  result = train.train_and_evaluate(make_augmented(), str(workdir))
  return workdir, result.state


def test_a_resumed_run_is_equal_bit_for_bit(augmented, tmp_path, capfd):
  workdir, state = augmented
  config = make_augmented()
  with pytest.raises(Interrupted):
    train.train_and_evaluate(config, str(tmp_path), hooks=[interrupt_at(5)])
  before = (tmp_path / 'augmented.png').stat().st_mtime_ns
  resumed, *_ = train.train_and_evaluate(config, str(tmp_path))
  assert_equal(resumed, state)
  rows = [without_rates(rows_of(folder)) for folder in (workdir, tmp_path)]
  assert rows[0] == rows[1]
  assert (tmp_path / 'augmented.png').stat().st_mtime_ns == before
  assert 'augmented.png' in capfd.readouterr().err


def test_the_picture_is_written_and_in_tensorboard(augmented):
  workdir, _ = augmented
  picture = np.asarray(Image.open(workdir / 'augmented.png'))
  assert picture.shape == (3 * (96 + 34), 8 * 100, 3)
  events = event_accumulator.EventAccumulator(str(workdir))
  events.Reload()
  assert [event.step for event in events.Tensors('augmented')] == [1]


def test_the_settings_belong_to_the_run(augmented):
  workdir, _ = augmented
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored['augment.jitter'] == 0.3
  config = make_augmented()
  config.augment.mixup = 0.2
  with pytest.raises(ValueError, match='augment.mixup=0.4 in the folder, 0.2'):
    run_files.check_config(str(workdir), config, 8)
  # The last quarter of the run is not mixed, so the length matters.
  config = make_augmented(total_steps=16)
  with pytest.raises(ValueError, match='config.augment.mix_off'):
    run_files.check_config(str(workdir), config, 8)


@pytest.mark.slow
@pytest.mark.parametrize('accum_steps, devices', [(1, 1), (4, 2), (2, 4)])
def test_micro_batches_and_devices_do_not_matter(
  augmented, tmp_path, monkeypatch, accum_steps, devices
):
  """Dropout is off, so only the augmentation is random."""
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(
    sharding,
    'make_mesh',
    lambda **axes: make_mesh(jax.devices()[:devices], **axes),
  )
  result = train.train_and_evaluate(
    make_augmented(accum_steps=accum_steps), str(tmp_path)
  )
  for a, b in zip(
    *map(jax.tree.leaves, (result.params, augmented[1].params)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_data_on_the_device(tmp_path):
  train.train_and_evaluate(make_augmented(data_on='device'), str(tmp_path))
  assert Image.open(tmp_path / 'augmented.png').size == (800, 390)


def test_tasks():
  """Labels of several classes are mixed; numbers are not."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (32, 8, 8, 3), np.uint8)
  several = (images.mean((1, 2)) > 127).astype(np.int32)
  config = make_config()
  config.augment.update(dict(mixup=0.8, mix_rules='big_vision'))
  data = setup.get_datasets(config, given=vit_data.from_arrays(images, several))
  made = multi_label.make(config, data)
  batch = {'image': images, 'label': several}
  mixed = jax.jit(made.checked_transform, static_argnums=3)(
    jax.random.key(0), batch, 0, True
  )
  ratio = np.asarray(mixed['label'] - several)
  other = np.roll(several, 1, axis=0) - several
  fraction = ratio[other != 0] / other[other != 0]
  np.testing.assert_allclose(fraction, fraction[0], rtol=1e-5)
  assert 0 < fraction[0] < 1
  assert made.transform(jax.random.key(0), batch, 0, False) is batch

  targets = images.mean((1, 2, 3))
  config.task = 'regression'
  data = setup.get_datasets(config, given=vit_data.from_arrays(images, targets))
  with pytest.raises(
    ValueError, match='config.augment.mixup=0.8 mixes .*task=regression'
  ):
    regression.make(config, data)
  config.augment.update(dict(mixup=0.0, pad=1))
  assert regression.make(config, data).transform is not task.keep_batch


def test_a_run_without_augmentation_is_the_program_of_before():
  config = make_config()
  assert task.make_transform(config, None, 10) is task.keep_batch
  config.augment.update(augreg_levels.settings('none'))
  assert task.make_transform(config, None, 10) is task.keep_batch


def test_a_linear_probe_has_fixed_features():
  config = vit_jax.get_config('configs/linear_probe.py:ti16,digits')
  config.augment.policy = 'trivial'
  with pytest.raises(ValueError, match="augment.policy='trivial' cannot be"):
    linear_probe.check(config)
