"""Initial weights and their metadata; `test_train` has complete runs."""

import numpy as np
import pytest

from tests import reference
from tests import tiny_run
from tests.checkpoint.test_trained_model import assert_same_bits
from vit_jax import models
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import trained_model
from vit_jax.export import formats

RUN = dict(
  name='testing', patch_size=4, hidden_size=12, num_heads=3, classifier='gap'
)
NAMES = tuple('abcde')


def fitted(path, settings, image_size, class_names, keep_head=True):
  others = {key: value for key, value in settings.items() if key != 'name'}
  model = models.get_model(
    settings['name'], num_classes=len(class_names), **others
  )
  initial = reference.initial_params(model, image_size)
  return init_weights.fit(
    init_weights.read(str(path), settings, keep_head),
    model,
    initial,
    image_size,
    class_names,
    'data',
    resize_patches=False,
  )


def test_the_parameters_of_a_run_are_used_unchanged(finished_run):
  found = fitted(finished_run.workdir, RUN, (8, 12), tiny_run.CLASSES)
  assert_same_bits(found, finished_run.params)


def described(path, image_size, names=NAMES, **settings):
  """Writes a file of the testing model with its metadata."""
  model = models.get_model('testing', num_classes=len(names), **settings)
  params = reference.params_like(reference.initial_params(model, image_size))
  formats.export(
    trained_model.TrainedModel(
      'w', 'testing', settings, model, params, image_size, image_size, names
    ),
    str(path),
  )
  return params


def test_positions_have_the_grid_of_the_metadata(tmp_path):
  """16 positions are 8 x 2 or 4 x 4. Without metadata, the grid is square."""
  params = described(tmp_path / 'w.npz', (128, 32))
  settings = dict(name='testing')
  assert_same_bits(
    fitted(tmp_path / 'w.npz', settings, (128, 32), NAMES), params
  )

  def corners(params, *grid):
    table = params['Transformer']['posembed_input']['pos_embedding'][0, 1:]
    return table.reshape(*grid, -1)[:: grid[0] - 1, :: grid[1] - 1]

  square = fitted(tmp_path / 'w.npz', settings, (64, 64), NAMES)
  np.testing.assert_array_equal(corners(square, 4, 4), corners(params, 8, 2))
  (tmp_path / 'w.npz.json').unlink()
  bare = fitted(tmp_path / 'w.npz', settings, (128, 32), NAMES)
  np.testing.assert_array_equal(corners(bare, 8, 2), corners(params, 4, 4))


def test_a_kept_head_gets_the_class_order_of_the_data(tmp_path, capsys):
  params = described(tmp_path / 'w.npz', (32, 32))
  settings = dict(name='testing')
  found = fitted(tmp_path / 'w.npz', settings, (32, 32), tuple('edabc'))
  np.testing.assert_array_equal(
    found['head']['kernel'], params['head']['kernel'][:, [4, 3, 0, 1, 2]]
  )
  assert 'matched by name' in capsys.readouterr().err
  for names, message in (
    (tuple('abcdx'), "'e' in the weights, 'x' in the data"),
    (tuple('abc'), 'w.npz has 5 classes, .*data has 3'),
  ):
    with pytest.raises(ValueError, match=message + '.*pretrained_head=fresh'):
      fitted(tmp_path / 'w.npz', settings, (32, 32), names)
    fitted(tmp_path / 'w.npz', settings, (32, 32), names, keep_head=False)


@pytest.mark.parametrize(
  'trained, wanted, advice',
  [
    (dict(gelu='exact'), {}, 'gelu=exact'),
    (dict(norm_epsilon=1e-12), {}, 'norm_epsilon=1e-12'),
    (
      dict(hidden_size=12, positions='none'),
      dict(hidden_size=12, positions='sincos2d'),
      'positions=none',
    ),
    (
      dict(class_token=True),
      dict(class_token=True, classifier='gap'),
      'classifier=token',
    ),
  ],
)
def test_a_kept_head_needs_the_settings_of_its_model(
  tmp_path, capsys, trained, wanted, advice
):
  described(tmp_path / 'w.npz', (32, 32), **trained)
  with pytest.raises(
    ValueError, match=f'Use config.model.{advice}.*pretrained_head=fresh'
  ):
    init_weights.read(
      str(tmp_path / 'w.npz'), dict(name='testing', **wanted), keep_head=True
    )
  init_weights.read(
    str(tmp_path / 'w.npz'), dict(name='testing', **trained), keep_head=True
  )
  assert not capsys.readouterr().err
  init_weights.read(
    str(tmp_path / 'w.npz'), dict(name='testing', **wanted), keep_head=False
  )
  warned = f'config.model.{advice}, unless' in capsys.readouterr().err
  # A new head accepts both classifiers.
  assert warned == ('classifier' not in advice)
