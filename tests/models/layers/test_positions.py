import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import GRID
from tests.tiny_model import IMAGES
from tests.tiny_model import like
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import patches
from vit_jax.models.layers import positions


def test_sincos_positions_equal_the_formula():
  table = positions.sincos_2d(GRID, 16)
  for row in range(4):
    for column in range(3):
      for i in range(4):
        frequency = 10_000 ** (-i / 3)
        close(
          [table[row * 3 + column, 4 * quarter + i] for quarter in range(4)],
          [
            math.sin(column * frequency),
            math.cos(column * frequency),
            math.sin(row * frequency),
            math.cos(row * frequency),
          ],
          1e-6,
        )


@pytest.mark.parametrize('kind', positions.ADDED)
def test_tokens_that_have_a_position(kind):
  layout = patches.Layout(GRID, num_tokens=1, num_registers=2)
  module = positions.PositionEmbedding(kind, layout)
  variables = like(jax.eval_shape(lambda: module.init(jax.random.key(0), 16)))
  table = module.apply(variables, 16)
  assert table.shape == (1, 1 + 12 + 2, 16)
  assert not table[:, -2:].any()
  assert table[:, 0].any() == (kind == 'learned')
  grid = table[0, 1:13].reshape(4, 3, 16)
  if kind == 'learned_2d':
    assert {x.shape for x in variables['params'].values()} == {(4, 8), (3, 8)}
  if kind != 'learned':  # one half depends on the row only, one on the column
    halves = [grid[..., :8], grid[..., 8:]]
    by_row, by_column = halves if kind == 'learned_2d' else halves[::-1]
    assert (by_row == by_row[:, :1]).all() and by_row.std(0).max() > 0.1
    assert (by_column == by_column[:1]).all() and by_column.std(1).max() > 0.1


def test_relative_positions_are_products_with_the_vector_of_the_offset():
  layout = patches.Layout(GRID, num_tokens=1, num_registers=2)
  module = positions.RelativePositions(layout)
  query = like(jnp.zeros((2, 15, 3, 5)), 1)
  variables = like(
    jax.eval_shape(lambda: module.init(jax.random.key(0), query))
  )
  logits = module.apply(variables, query)
  table = np.asarray(variables['params']['embedding'])
  assert logits.shape == (2, 3, 15, 15) and table.shape == (23, 5)
  expected = np.zeros(logits.shape)
  for q in range(12):
    for k in range(12):
      expected[:, :, 1 + q, 1 + k] = (
        np.asarray(query[:, 1 + q]) @ table[k - q + 11] / 5**0.5
      )
  close(logits, expected)
  # After patch dropout, the logits of the remaining patches do not change.
  kept = jnp.array([[0, 3, 4, 11], [1, 2, 9, 10]])
  stay = jnp.pad(kept + 1, ((0, 0), (1, 0)))
  stay = jnp.concatenate([stay, jnp.full((2, 2), 13) + jnp.arange(2)], axis=1)
  fewer = module.apply(
    variables, jnp.take_along_axis(query, stay[..., None, None], 1), kept
  )
  for b in range(2):
    close(fewer[b], logits[b][:, stay[b]][:, :, stay[b]])


def test_relative_positions_do_not_depend_on_a_shift():
  """A shift of all patches does not change the logits between them."""
  module = positions.RelativePositions(patches.Layout(GRID))
  query = like(jnp.zeros((1, 12, 2, 5)), 1)
  variables = like(
    jax.eval_shape(lambda: module.init(jax.random.key(0), query))
  )
  shifted = module.apply(variables, jnp.roll(query, 4, axis=1))
  close(shifted[..., 4:, 4:], module.apply(variables, query)[..., :8, :8])


@pytest.mark.parametrize('classifier', ['gap', 'map'])
@pytest.mark.parametrize('kind', ['none', 'learned', 'relative'])
def test_the_order_of_patches_matters_only_with_positions(classifier, kind):
  model = make_vit(classifier=classifier, positions=kind, num_layers=1)
  flat = params_of(model)
  rows = np.concatenate(np.split(IMAGES, 4, axis=1)[::-1], axis=1)
  check = close if kind == 'none' else differ
  check(run(model, flat), run(model, flat, rows))


def test_where_positions_are_added():
  """With zeros in layer 2, the positions act like positions at the input."""
  at_input = make_vit(classifier='gap')
  everywhere = make_vit(classifier='gap', positions_at='every_layer')
  shared = make_vit(classifier='gap', positions_at='every_layer_shared')
  flat = params_of(at_input)
  assert flat.keys() == params_of(shared).keys()
  own = {path: x for path, x in flat.items() if 'posembed_input' not in path}
  table = flat['Transformer/posembed_input/pos_embedding']
  paths = [f'{BLOCK}{i}/posembed/pos_embedding' for i in range(2)]
  assert params_of(everywhere).keys() == own.keys() | set(paths)
  own[paths[0]], own[paths[1]] = table, 0 * table
  close(run(everywhere, own), run(at_input, flat))
  own[paths[1]] = table
  close(run(everywhere, own), run(shared, flat))
  differ(run(shared, flat), run(at_input, flat))


@pytest.mark.parametrize('kind', positions.BIASES)
def test_a_bias_of_each_2d_offset(kind):
  layout = patches.Layout(GRID, num_tokens=1, num_registers=2)
  module = positions.RelativeBias(kind=kind, layout=layout, num_heads=3)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0)))
  params = jax.tree.map(np.asarray, like(shapes)['params'])
  bias = np.asarray(module.apply({'params': params}))
  assert bias.shape == (1, 3, 15, 15) and not bias[:, :, -2:].any()
  for q in range(12):
    for k in range(12):
      down, across = q // 3 - k // 3, q % 3 - k % 3
      if kind == 'relative_table':  # 7 x 5 offsets
        expected = params['table'][(down + 3) * 5 + across + 2]
      else:
        offset = np.array([down, across])
        logs = np.sign(offset) * np.log(1 + abs(offset))
        first, second = params['Dense_0'], params['Dense_1']
        hidden = np.maximum(logs @ first['kernel'] + first['bias'], 0)
        expected = hidden @ second['kernel'] + second['bias']
      close(bias[0, :, 1 + q, 1 + k], expected)
  if kind == 'relative_table':  # of the class token
    to_patch, from_patch, to_itself = params['table'][-3:, :, None]
    close(bias[0, :, 0, 1:13], np.broadcast_to(to_patch, (3, 12)))
    close(bias[0, :, 1:13, 0], np.broadcast_to(from_patch, (3, 12)))
    close(bias[0, :, 0, :1], to_itself)
  else:
    assert not bias[:, :, 0].any() and not bias[:, :, :, 0].any()
  # After patch dropout, the logits of the remaining patches do not change.
  kept = jnp.array([[0, 3, 4, 11], [1, 2, 9, 10]])
  fewer = module.apply({'params': params}, kept)
  for b in range(2):
    stay = np.array([0, *(kept[b] + 1), 13, 14])
    close(fewer[b], bias[0][:, stay][:, :, stay])


def test_models_with_a_bias():
  own = make_vit(positions='relative_table')
  flat = params_of(own)
  paths = [f'{BLOCK}{i}/relative_positions/table' for i in range(2)]
  assert {path for path in flat if 'relative' in path} == set(paths)
  logits = run(own, flat)
  differ(logits, run(own, {**flat, paths[1]: flat[paths[0]]}))
  scanned = make_vit(positions='relative_table', scan=True, remat='full')
  close(logits, run(scanned, flat))
  shared = make_vit(
    positions='relative_table', positions_at='every_layer_shared'
  )
  one = {path: x for path, x in flat.items() if path not in paths}
  one['Transformer/relative_positions/table'] = flat[paths[0]]
  close(run(shared, one), run(own, {**flat, paths[1]: flat[paths[0]]}))
