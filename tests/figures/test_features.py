"""Comparisons of features, filters and positions: known properties."""

import numpy as np
import pytest

from tests.tiny_model import close
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import shapes_of
from vit_jax import models
from vit_jax.figures import features
from vit_jax.figures import filters
from vit_jax.models.layers import positions

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape)


def rotation(size):
  return np.linalg.qr(normal(size, size))[0]


def cka(*layers):
  return features.cka(
    features.hsic_of_layers([features.gram(x) for x in layers])
  )


# --- CKA ---------------------------------------------------------------------


def test_cka_of_equal_and_of_rotated_layers():
  x = normal(12, 3, 2)
  rotated = 3 * x.reshape(12, 6) @ rotation(6) + 5
  found = cka(x, rotated, normal(12, 4))
  close(np.diag(found), 1)
  close(found[0, 1], 1, 1e-5)
  close(found, found.T, 1e-12)
  assert abs(found[0, 2]) < 0.6


def test_cka_of_independent_layers_is_near_0():
  """The biased form is far from it: here, 0.87."""
  sums = 0
  for _ in range(40):
    grams = [features.gram(normal(8, 50)) for _ in range(2)]
    sums = sums + features.hsic_of_layers(grams)
  assert abs(features.cka(sums)[0, 1]) < 0.05


def test_hsic_is_its_formula_without_centering():
  x, y = normal(7, 4) + 3, normal(7, 9) - 2
  k, m = x @ x.T, y @ y.T
  np.fill_diagonal(k, 0)
  np.fill_diagonal(m, 0)
  ones, n = np.ones(7), 7
  expected = (
    np.trace(k @ m)
    + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    - 2 / (n - 2) * (ones @ k @ m @ ones)
  ) / (n * (n - 3))
  found = features.hsic(features.gram(x), features.gram(y))
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_cka_needs_four_images():
  with pytest.raises(ValueError, match='at least 4 images in a batch, not 3'):
    cka(normal(3, 2))


# --- norms and components ----------------------------------------------------


def test_a_large_token_is_an_outlier():
  tokens = normal(50, 16)
  tokens[17] *= 100
  norms = np.linalg.norm(tokens, axis=-1)
  found = np.flatnonzero(norms > features.outlier_cutoff(norms))
  assert found.tolist() == [17]
  close(features.outlier_cutoff(np.array([1, 2, 3, 4, 50]), 2), 3 + 2 * 1)


def planted():
  """Returns (features, mask): an object in the middle of two images."""
  mask = np.zeros((2, 6, 5), bool)
  mask[0, 2:4, 1:4] = mask[1, 1:5, 2:4] = True
  center = normal(8)
  return 0.1 * normal(2, 6, 5, 8) + np.where(
    mask[..., None], center, -center
  ), mask


def test_the_foreground_is_the_planted_object():
  for _ in range(4):  # whatever sign the component has
    grids, mask = planted()
    np.testing.assert_array_equal(features.foreground(grids), mask)
    np.testing.assert_array_equal(
      features.foreground(grids, invert=True), ~mask
    )


def test_colors_do_not_depend_on_a_rotation():
  grids, mask = planted()
  found = features.colors(grids, mask)
  assert not found[~mask].any()
  close(found[mask].min(0), 0)
  close(found[mask].max(0), 1)
  turned = grids @ rotation(8) + 2
  np.testing.assert_array_equal(features.foreground(turned), mask)
  close(features.colors(turned, mask), found, 1e-9)
  assert not features.colors(grids, np.zeros_like(mask)).any()
  few = np.zeros_like(mask)
  few[0, 0, 0] = True
  assert np.isfinite(features.colors(grids, few)).all()


def test_similarity_to_a_patch():
  grids = normal(2, 3, 4, 5)
  grids[1, 0, 0] = -2 * grids[1, 2, 1]
  found = features.similarity(grids, (2, 1))
  close(found[:, 2, 1], 1)
  close(found[1, 0, 0], -1)
  a, b = grids[0, 1, 3], grids[0, 2, 1]
  close(found[0, 1, 3], a @ b / np.sqrt(a @ a * (b @ b)))


# --- filters -----------------------------------------------------------------


def test_components_are_orthonormal_and_rebuild_the_kernel():
  kernel = normal(3, 4, 2, 40)
  found, fractions = filters.components(kernel, 24)
  flat = found.reshape(24, -1)
  close(flat @ flat.T, np.eye(24), 1e-9)
  close(fractions.sum(), 1)
  assert (np.diff(fractions) <= 0).all()
  vectors = kernel.reshape(24, 40).T
  centered = vectors - vectors.mean(0)
  close(centered @ flat.T @ flat, centered, 1e-9)
  assert (flat[np.arange(24), np.abs(flat).argmax(1)] > 0).all()
  close(fractions[0], (centered @ flat[0]).var() / centered.var(0).sum())
  permuted, _ = filters.components(kernel[..., RNG.permutation(40)])
  close(permuted, found, 1e-8)
  assert len(filters.components(normal(8, 8, 3, 64))[0]) == 28
  assert len(filters.components(normal(8, 8, 3, 6))[0]) == 6


@pytest.mark.parametrize(
  'model, path, shape',
  [
    (make_vit(), 'embedding/kernel', (8, 8, 3, 16)),
    (make_mixer(), 'stem/kernel', (8, 8, 3, 16)),
    (
      make_vit(stem_units=(1,), patch_size=1),
      'conv_root/kernel',
      (7, 7, 3, 64),
    ),
    (models.BitResNet(3, (1,), 1), 'conv_root/kernel', (7, 7, 3, 64)),
  ],
)
def test_the_layer_that_reads_the_pixels(model, path, shape):
  zeros = {
    name: {'kernel': np.zeros(x['kernel'].shape)}
    for name, x in shapes_of(model, (3, 32, 24, 3))['params'].items()
    if isinstance(x, dict) and 'kernel' in x
  }
  found, kernel = filters.first_kernel(zeros)
  assert (found, kernel.shape) == (path, shape)


# --- positions ---------------------------------------------------------------


def nested(flat):
  from flax import traverse_util

  return traverse_util.unflatten_dict(flat, sep='/')


@pytest.mark.parametrize('settings', [
  dict(num_registers=1),
  dict(classifier='gap', positions_at='every_layer_shared'),
  dict(distilled=True, positions_at='every_layer'),
])  # fmt: skip
def test_learned_positions_are_those_of_the_patches(settings):
  model = make_vit(**settings)
  flat = params_of(model)
  (table, *rest) = (x for path, x in flat.items() if 'pos_embedding' in path)
  assert len(rest) == (model.positions_at == 'every_layer')
  found = filters.position_table(model, nested(flat), (32, 24))
  np.testing.assert_array_equal(found, table[0, -12:])  # patches are last
  cosines = filters.similarities(found, (4, 3))
  assert cosines.shape == (4, 3, 4, 3)
  matrix = cosines.reshape(12, 12)
  close(np.diag(matrix), 1)
  close(matrix, matrix.T, 1e-12)
  a, b = found[4], found[11]
  close(cosines[1, 1, 3, 2], a @ b / np.sqrt(a @ a * (b @ b)), 1e-6)


def test_sincos_depends_on_the_offset_alone():
  model = make_vit(positions='sincos2d', num_registers=2)
  table = filters.position_table(model, {}, (32, 24))
  np.testing.assert_array_equal(table, positions.sincos_2d((4, 3), 16))
  found = filters.similarities(table, (4, 3))
  by_offset = {}
  for i, j, k, m in np.ndindex(4, 3, 4, 3):
    by_offset.setdefault((k - i, m - j), []).append(found[i, j, k, m])
  for values in by_offset.values():
    close(values, values[0], 1e-6)


def test_learned_2d_is_a_sum_of_rows_and_columns():
  model = make_vit(positions='learned_2d')
  flat = params_of(model)
  table = filters.position_table(model, nested(flat), (32, 24))
  products = (table @ table.T).reshape(4, 3, 4, 3)
  rows, columns = (
    np.asarray(flat[f'Transformer/posembed_input/{name}'])
    for name in ('rows', 'columns')
  )
  expected = (rows @ rows.T)[:, None, :, None] + (columns @ columns.T)[
    None, :, None
  ]
  close(products, expected, 1e-5)


def test_norms_of_relative_positions():
  flat = params_of(make_vit(positions='relative'))
  found = filters.offset_norms(nested(flat))
  assert found.shape == (2, 23)
  (table,) = (x for p, x in flat.items() if 'block_1' in p and 'relative' in p)
  close(found[1, 4], np.sqrt((np.asarray(table)[4] ** 2).sum()), 1e-6)


@pytest.mark.parametrize(
  'model, message',
  [
    (make_mixer(), 'MlpMixer has no position'),
    (models.BitResNet(3, (1,), 1), 'BitResNet has no position'),
    (make_vit(positions='none'), "positions='none' has no vectors"),
    (make_vit(positions='relative_table'), "positions='relative_table' has no"),
  ],
)
def test_models_without_a_table_of_positions(model, message):
  with pytest.raises(ValueError, match=message):
    filters.check_positions(model)
