"""A run takes the settings of BiT-HyperRule from its training images."""

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
  config.total_steps = 0
  config.decay_type = 'step'
  config.pp.update(dict(crop=0, train_crop='squash'))
  config.update(settings)
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
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '1').mkdir()
  json_files.write_json(metadata.config_path(tmp_path), stored)
  assert adopted(make_config(), workdir=str(tmp_path)) == stored


def test_without_the_rule_nothing_is_read():
  config = make_config(hyperrule=False, dataset='/no/such/folder')
  assert bit_hyperrule.adopt(config) is config


@pytest.mark.parametrize(
  'settings',
  [
    *({'total_steps': 10}, {'total_epochs': 1.0}, {'warmup_epochs': 1.0}),
    {'decay_type': 'cosine'},
  ],
)
def test_settings_that_contradict_the_rule_are_errors(settings):
  (name,) = settings
  with pytest.raises(ValueError, match=f'config.{name}=.* needs config.{name}'):
    bit_hyperrule.adopt(make_config(**settings))


def test_batches_have_no_number():
  batch = {'image': np.zeros((2, 8, 8, 3), np.float32), 'label': [0, 1]}
  data = vit_jax.data.from_batches(iter([batch]), num_classes=2)
  with pytest.raises(ValueError, match='batches from Python do not have'):
    bit_hyperrule.adopt(make_config(batch=2), given=data)
