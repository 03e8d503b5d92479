"""A run takes the settings of BiT-HyperRule from its training images."""

import re

import numpy as np
import pytest

import vit_jax
from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.files import json_files
from vit_jax.optim import hyperrule
from vit_jax.run.start import bit_hyperrule


def make_config(**settings):
  config = base_config.for_dataset('digits')
  config.hyperrule = True
  config.total_steps = config.warmup_steps = 0
  config.decay_type = 'step'
  config.pp.update(dict(crop=0, train_crop='squash'))
  config.update_from_flattened_dict(settings)
  return config


def adopted(config, **options):
  """Returns the settings of the rule in the adopted config."""
  flat = base_config.flatten(bit_hyperrule.adopt(config, **options))
  return {name: flat[name] for name in hyperrule.settings(1, (1, 1))}


def test_number_and_size_are_those_of_the_training_images(capfd):
  assert adopted(make_config()) == hyperrule.settings(1420, (8, 8))
  assert '1420 training images of 8 x 8 pixels' in capfd.readouterr().err
  images = np.zeros((20_000, 1, 10_000, 3), np.uint8)
  images = np.broadcast_to(images[:1], images.shape)
  data = vit_jax.data.from_arrays(images, np.arange(20_000) % 2)
  expected = hyperrule.settings(20_000, (100, 100))
  assert adopted(make_config(), given=data) == expected


def test_a_run_that_resumes_keeps_its_settings(tmp_path):
  stored = hyperrule.settings(10**6, (500, 375))
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  json_files.write_json(metadata.config_path(tmp_path), stored)
  assert adopted(make_config(), workdir=str(tmp_path)) == stored


def test_without_the_rule_nothing_is_read():
  config = make_config(hyperrule=False, dataset='/no/such/folder')
  assert bit_hyperrule.adopt(config) is config


@pytest.mark.parametrize(
  'name, value, others',
  [
    ('total_epochs', 1.0, 'needs config.total_epochs=0'),
    ('warmup_epochs', 1.0, 'needs config.warmup_epochs=0'),
    ('decay_type', 'cosine', "needs config.decay_type='step'"),
    ('pp.train_crop', 'area', "needs config.pp.train_crop='squash'"),
    ('total_steps', 10, 'uses config.total_steps=500'),
    ('warmup_steps', 7, 'uses config.warmup_steps=100 for 1420 training im'),
    ('drop_steps', (5,), 'uses config.drop_steps=(200, 300, 400)'),
    ('augment.mixup', 0.3, 'uses config.augment.mixup=0.0'),
    ('pp.train_size', 40, 'uses config.pp.train_size=160'),
    ('pp.crop', 32, 'uses config.pp.crop=128'),
  ],
)
def test_settings_that_contradict_the_rule_are_errors(name, value, others):
  message = re.escape(
    f'config.{name}={value!r} contradicts config.hyperrule=True, which {others}'
  )
  with pytest.raises(ValueError, match=message):
    bit_hyperrule.adopt(make_config(**{name: value}))


def test_settings_may_have_the_values_of_the_rule(tmp_path):
  rule = hyperrule.settings(1420, (8, 8))
  assert adopted(make_config(**rule)) == rule
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  json_files.write_json(metadata.config_path(tmp_path), rule)
  assert adopted(make_config(**rule), workdir=str(tmp_path)) == rule
  with pytest.raises(ValueError, match='steps=0 to leave .* to the rule'):
    bit_hyperrule.adopt(make_config(warmup_steps=7), str(tmp_path))


@pytest.mark.parametrize('mixup', [0.0, 0.3])
def test_the_rule_does_not_mix_numbers(mixup):
  """Otherwise a user could not follow the advice to use mixup=0."""
  images = np.broadcast_to(np.zeros((), np.uint8), (20_000, 1, 1, 3))
  data = vit_jax.data.from_arrays(images, np.arange(20_000.0))
  config = make_config(task='regression', **{'augment.mixup': mixup})
  expected = hyperrule.settings(20_000, (1, 1)) | {'augment.mixup': mixup}
  assert adopted(config, given=data) == expected


def test_batches_have_no_number():
  batch = {'image': np.zeros((2, 8, 8, 3), np.float32), 'label': [0, 1]}
  data = vit_jax.data.from_batches(iter([batch]), num_classes=2)
  with pytest.raises(ValueError, match='batches from Python do not have'):
    bit_hyperrule.adopt(make_config(batch=2), given=data)
