"""The advice in errors about weights that do not match a model is correct."""

from flax import traverse_util
import numpy as np
import pytest

from tests import reference
from vit_jax import models
from vit_jax.checkpoint import adaptation

SMALL = dict(
  patch_size=16, hidden_size=12, mlp_dim=8, num_heads=3, num_layers=1
)
MIXER = dict(
  patch_size=16, hidden_size=4, num_layers=1, tokens_mlp_dim=4, mlp_dim=4
)


def params_of(name='testing', size=(32, 32), num_classes=3, **settings):
  """Returns {path: array} of a model."""
  model = models.get_model(name, num_classes=num_classes, **settings)
  return traverse_util.flatten_dict(
    reference.initial_params(model, size), sep='/'
  )


def error_of(file, model, keep_head=False):
  """Returns the message for a file that does not match the model."""
  file, model = (
    traverse_util.unflatten_dict(flat, sep='/') for flat in (file, model)
  )
  with pytest.raises(ValueError, match='the weights do not match') as error:
    adaptation.adapt(file, model, (2, 2), keep_head)
  return str(error.value)


def without(flat, path):
  return {key: value for key, value in flat.items() if key != path}


@pytest.mark.parametrize(
  'change',
  [
    lambda file: without(file, 'Transformer/encoder_norm/scale'),
    lambda file: without(file, 'embedding/bias'),
    lambda file: file | {'Transformer/extra': np.ones(3)},
    lambda file: file | {'embedding/bias': np.ones(7)},
    lambda file: file | {'embedding/kernel': np.ones((16, 192))},
    lambda file: (
      file
      | {'Transformer/posembed_input/pos_embedding': np.ones((1, 5, 3, 64))}
    ),
  ],
)
def test_the_error_names_no_architecture_that_rejects_the_file(change):
  file = params_of('ViT-Ti_16')
  for model in (file, params_of(**SMALL)):
    for keep_head in (False, True):
      assert 'The file matches' not in error_of(change(file), model, keep_head)
  assert 'The file matches config.model.name=ViT-Ti_16' in error_of(
    file, params_of(**SMALL)
  )


def test_a_damaged_head_matters_only_if_it_is_kept():
  file = params_of('ViT-Ti_16') | {'head/bias': np.ones(2)}
  model = params_of(**SMALL)
  assert 'The file matches' in error_of(file, model)
  assert 'The file matches' not in error_of(file, model, keep_head=True)


def test_the_advised_architecture_and_settings_match_the_file():
  model = params_of(**SMALL)
  file = params_of('ViT-Ti_16', representation_size=6)
  for keep_head in (False, True):
    message = error_of(file, model, keep_head)
    assert 'The file matches config.model.name=ViT-Ti_16' in message
    assert ('ViT-Ti_16 config.model.representation_size=6' in message) == (
      keep_head
    )
  mixer = params_of('Mixer-B_32', (64, 96))  # The image is not square.
  assert 'The file matches' not in error_of(mixer, model)
  mixer = params_of('Mixer-B_32', (96, 96))
  assert (
    'config.model.name=Mixer-B_32 config.pp.crop=96 config.pp.crop_width=0'
  ) in error_of(mixer, model)


@pytest.mark.parametrize(
  'settings',
  [
    dict(classifier='gap'),
    dict(classifier='gap', class_token=False),
    dict(classifier='map', class_token=False),
    dict(classifier='map', class_token=True),
    dict(classifier='token'),
  ],
)
def test_the_advised_settings_give_the_arrays_of_the_file(settings):
  """With the advised settings, every model has the arrays of the file."""
  file = params_of(**SMALL, **settings)
  for other in (
    dict(classifier='token'),
    dict(classifier='gap'),
    dict(classifier='gap', class_token=True),
    dict(classifier='map'),
    dict(classifier='map', class_token=True),
  ):
    model = params_of(**SMALL, **other)
    if model.keys() == file.keys():
      continue
    message = error_of(file, model, keep_head=True)
    (hint,) = [
      line for line in message.splitlines() if line.startswith("For the file's")
    ]
    advised = dict(
      word.removeprefix('config.model.').split('=')
      for word in hint.split()
      if '=' in word
    )
    if 'class_token' in advised:
      advised['class_token'] = advised['class_token'] == 'True'
    assert params_of(**SMALL, **{**other, **advised}).keys() == file.keys()


def test_a_file_of_another_family_gets_no_advice_about_its_head():
  for file in (
    params_of('Mixer-B_16', **MIXER),
    params_of('BiT-R50x1', num_units=(1,)),
  ):
    message = error_of(file, params_of(**SMALL), keep_head=True)
    assert 'classifier' not in message


@pytest.mark.parametrize(
  'classes, width, is_advised',
  [(3, 24, False), (4, 12, True), (4, 24, True), (0, 12, True)],
)
def test_a_new_head_is_advised_only_for_other_classes(
  classes, width, is_advised
):
  file = params_of(num_classes=classes, **{**SMALL, 'hidden_size': width})
  message = error_of(file, params_of(**SMALL), keep_head=True)
  assert ('config.pretrained_head=fresh' in message) == is_advised


def test_an_image_size_is_advised_only_if_it_helps():
  model = params_of('Mixer-B_16', **MIXER)
  at = {
    (size, patch): params_of(
      'Mixer-B_16', size, **{**MIXER, 'patch_size': patch}
    )
    for size, patch in (((48, 48), 16), ((32, 48), 16), ((32, 32), 32))
  }
  assert 'config.pp.crop=48' in error_of(at[(48, 48), 16], model)
  assert 'config.pp.crop' not in error_of(at[(32, 48), 16], model)
  assert 'config.pp.crop' not in error_of(at[(32, 32), 32], model)
  assert 'config.pp.crop' not in error_of(
    without(at[(48, 48), 16], 'stem/kernel'), model
  )


def test_attention_heads_are_advised_only_at_the_same_width():
  model = params_of(**SMALL)
  message = error_of(params_of(**{**SMALL, 'num_heads': 2}), model)
  assert 'config.model.num_heads=2' in message
  assert 'num_heads=3)' in message
  # The shapes (18, 2, 4) and (12, 3, 4) have equal numbers of values.
  wider = params_of(**{**SMALL, 'hidden_size': 18, 'num_heads': 2}, head_dim=4)
  assert 'num_heads' not in error_of(wider, model)
