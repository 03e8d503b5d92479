"""Position embeddings are resampled to another grid of patches."""

from flax import traverse_util
import jax
import numpy as np
import pytest
import scipy.ndimage

from tests import reference
from tests.checkpoint.test_adaptation import POSITIONS
from tests.checkpoint.test_adaptation import weights
from vit_jax.checkpoint import adaptation


@pytest.mark.parametrize(
  'case',
  ['14to24_cls_d10', '14to24_nocls_d10', '7to12_cls_d10', '24to14_nocls_d10'],
)
def test_resampled_positions_equal_the_reference(case):
  given, expected = (
    reference.arrays()[f'positions/{case}/{side}'] for side in ('in', 'out')
  )
  token = int('_cls' in case)
  side = int((expected.shape[1] - token) ** 0.5)
  found = adaptation.resample_positions(given[:, token:], (side, side))
  np.testing.assert_allclose(found, expected[:, token:], atol=1e-6)


def test_positions_of_a_wide_grid_are_linear_along_each_side():
  rows, columns = np.mgrid[0:4, 0:4].astype(np.float32)
  plane = np.stack([rows, columns], -1).reshape(1, 16, 2)
  wide = adaptation.resample_positions(plane, (3, 7)).reshape(3, 7, 2)
  np.testing.assert_allclose(wide[:, 0, 0], np.linspace(0, 3, 3), atol=1e-6)
  np.testing.assert_allclose(wide[0, :, 1], np.linspace(0, 3, 7), atol=1e-6)
  with pytest.raises(ValueError, match='15 position embeddings.*source_grid='):
    adaptation.resample_positions(plane[:, :15], (3, 7))


def test_all_pairs_of_lengths_up_to_96():
  """Rounding must not move the last row out of the table (28 -> 48).

  Bilinear interpolation treats both sides alike and one after the other. So all
  pairs of lengths are tested with one side, and some with two.
  """
  rng, wrong = np.random.default_rng(0), 0
  for given in range(1, 97):
    table = rng.uniform(1, 2, (given, 1)).astype(np.float32)
    for wanted in range(1, 97):
      found = adaptation.resample_positions(
        table[None], (wanted, 1), (given, 1)
      )[0]
      places = np.linspace(0, given - 1, wanted)
      expected = np.interp(places, np.arange(given), table[:, 0])
      assert np.abs(found[:, 0] - expected).max() < 1e-6, (given, wanted)
      scipys = scipy.ndimage.zoom(table, (wanted / given, 1), order=1)
      is_wrong = not scipys[-1, 0]
      wrong += is_wrong
      right = wanted - is_wrong
      assert np.array_equal(found[:right], scipys[:right]), (given, wanted)
      if is_wrong:
        assert found[-1, 0] == table[-1, 0], (given, wanted)
  assert 230 < wrong < 245  # otherwise SciPy no longer has the fault


@pytest.mark.parametrize(
  'given, wanted',
  [((28, 28), (48, 48)), ((32, 32), (16, 16)), ((28, 14), (48, 24))],
)
def test_the_last_row_and_column_are_not_zero(given, wanted):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(*given, 3)).astype(np.float32)
  found = adaptation.resample_positions(
    image.reshape(1, -1, 3), wanted, given
  ).reshape(*wanted, 3)
  expected = image
  for axis in (0, 1):
    places = np.linspace(0, given[axis] - 1, wanted[axis])
    expected = np.apply_along_axis(
      lambda values, x=places: np.interp(x, np.arange(len(values)), values),
      axis,
      expected,
    )
  np.testing.assert_allclose(found, expected, atol=1e-5)
  scipys = scipy.ndimage.zoom(
    image, (wanted[0] / given[0], wanted[1] / given[1], 1), order=1
  )
  assert not scipys[-1].any()
  right = scipys.any(axis=-1)
  np.testing.assert_array_equal(found[right], scipys[right])


@pytest.mark.parametrize(
  'given, wanted', [((4, 4), (2, 6)), ((2, 6), (4, 4)), ((2, 6), (3, 9))]
)
def test_any_grid_to_any_grid(given, wanted):
  """A linear function of the location stays linear for all grid sizes."""

  def plane(rows, columns):
    down, across = np.meshgrid(
      np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing='ij'
    )
    return np.stack([down, across], -1).reshape(1, -1, 2)

  np.testing.assert_allclose(
    adaptation.resample_positions(plane(*given), wanted, given),
    plane(*wanted),
    atol=1e-12,
  )


def test_the_grid_of_a_file():
  loaded = weights(size=(32, 96))
  initial = weights(size=(64, 64))
  with pytest.raises(
    ValueError, match=r'12 position embeddings.*source_grid=.*\(2, 6\)'
  ):
    adaptation.adapt(loaded, initial, (4, 4))
  with pytest.raises(
    ValueError, match=r'source_grid=\(2, 4\) has 8 positions, .* 12 position'
  ):
    adaptation.adapt(loaded, initial, (4, 4), source_grid=(2, 4))
  found = adaptation.adapt(loaded, initial, (4, 4), source_grid=(2, 6))
  positions = traverse_util.flatten_dict(loaded)[POSITIONS]
  np.testing.assert_array_equal(
    traverse_util.flatten_dict(found)[POSITIONS][0, [0, 1, 4, 13, 16]],
    positions[0, [0, 1, 6, 7, 12]],
  )  # The class token and the corners.
  same = adaptation.adapt(loaded, weights(size=(32, 96)), (2, 6))
  np.testing.assert_array_equal(
    traverse_util.flatten_dict(same)[POSITIONS], positions
  )


def test_positions_of_the_same_grid_do_not_change():
  """8 x 2 positions are not read as a square grid, although 16 is a square."""
  loaded = weights(size=(128, 32))
  found = adaptation.adapt(loaded, weights(size=(128, 32)), (8, 2))
  np.testing.assert_array_equal(
    traverse_util.flatten_dict(found)[POSITIONS],
    traverse_util.flatten_dict(loaded)[POSITIONS],
  )
  table = np.arange(16.0).reshape(1, 16, 1)
  assert adaptation.resample_positions(table, (8, 2)) is table
  square = adaptation.resample_positions(table, (8, 2), (4, 4))
  np.testing.assert_allclose(square.reshape(8, 2)[[0, -1]], [[0, 3], [12, 15]])


def relative_table(rows, columns, vector):
  """Returns [2N - 1, d]: for each k - q, the mean of `vector` over pairs."""
  place = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2)
  found = {}
  for q, (a, b) in enumerate(place):
    for k, (c, d) in enumerate(place):
      found.setdefault(k - q, []).append(
        vector((c - a) / max(rows - 1, 1), (d - b) / max(columns - 1, 1))
      )
  return np.array([np.mean(found[o], 0) for o in sorted(found)])


@pytest.mark.parametrize(
  'given, wanted',
  [((4, 1), (7, 1)), ((1, 3), (1, 5)), ((3, 3), (3, 3)), ((2, 8), (2, 8))],
)
def test_relative_positions_of_lines_stay_linear(given, wanted):
  def vector(down, across):
    return np.array([2 * down - across, 1])

  np.testing.assert_allclose(
    adaptation.resample_relative(relative_table(*given, vector), wanted, given),
    relative_table(*wanted, vector),
    atol=1e-12,
  )


@pytest.mark.parametrize('given, wanted', [((3, 3), (2, 4)), ((2, 3), (4, 4))])
def test_relative_positions_are_means_over_pairs(given, wanted):
  """For each pair of patches, the expected table interpolates the old table."""
  rng = np.random.default_rng(0)
  rows, columns = given
  table = rng.normal(size=(2 * rows * columns - 1, 3))

  def vector(down, across):  # Bilinear; both arguments are in [-1, 1].
    y, x = down * (rows - 1), across * (columns - 1)
    found = 0
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
      for j in (int(np.floor(x)), int(np.floor(x)) + 1):
        weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
        if weight:
          found += weight * table[i * columns + j + rows * columns - 1]
    return found

  np.testing.assert_allclose(
    adaptation.resample_relative(table, wanted, given),
    relative_table(*wanted, vector),
    atol=1e-6,
  )


def test_relative_positions_of_a_model_at_another_size():
  loaded = weights(size=(32, 48), positions='relative')
  initial = weights(size=(64, 32), positions='relative')
  found = adaptation.adapt(loaded, initial, (4, 2), source_grid=(2, 3))
  table = (
    'Transformer',
    'encoderblock_0',
    'MultiHeadDotProductAttention_0',
    'relative_positions',
    'embedding',
  )
  found, loaded = map(traverse_util.flatten_dict, (found, loaded))
  assert found[table].shape == (15, 5)
  # The vectors for displacement 0 and for opposite corners do not change.
  np.testing.assert_allclose(
    found[table][[0, 7, 14]], loaded[table][[0, 5, 10]], atol=1e-6
  )


def test_positions_by_row_and_column():
  def table(length):
    return np.linspace(0, 1, length)[:, None] * np.ones(3)

  def params(rows, columns):
    return {
      'Transformer': {
        'posembed_input': {'rows': table(rows), 'columns': 2 * table(columns)}
      }
    }

  found = adaptation.adapt(params(3, 4), params(5, 2), (5, 2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
    found,
    params(5, 2),
  )


def test_a_table_of_relative_positions_equals_that_of_timm():
  """`resize_rel_pos_bias_table` of timm 1.0.31 made the expected values."""
  table = np.arange(49.0).reshape(49, 1)
  found = adaptation.resample_table(table, (6, 4)).reshape(11, 7)
  rows = [2.3628, 5.4739, 9.3628, 14.0295, 21.0295, 28.0295, 32.6962, 36.5851]
  np.testing.assert_allclose(found[1:9, 0], rows, atol=2e-4)
  first = [0.0295, 1.0099, 2, 3, 4, 4.9901, 5.9705]
  np.testing.assert_allclose(found[0], first, atol=2e-4)
  # Logits of small offsets do not change.
  np.testing.assert_allclose(found[5, 3], 24, atol=1e-9)
  assert adaptation.resample_table(table, (4, 4)) is table
  wide = adaptation.resample_table(table[:27], (2, 5))  # as many offsets
  assert wide is not None and len(wide) == 27
  with pytest.raises(ValueError, match='47 offsets.*source_grid='):
    adaptation.resample_table(table[:47], (6, 4))


@pytest.mark.parametrize('given, wanted', [(1, 1), (1, 0), (0, 1)])
def test_entries_of_the_class_token_in_a_table(given, wanted):
  path = 'Transformer/encoderblock_0/relative_positions/table'
  rng = np.random.default_rng(0)

  def tree(has_token, side):
    size = (2 * side - 1) ** 2 + 3 * has_token
    flat = {path: rng.standard_normal((size, 2))}
    if has_token:
      flat['cls'] = rng.standard_normal((1, 1, 4))
    return traverse_util.unflatten_dict(flat, sep='/')

  loaded, initial = tree(given, 2), tree(wanted, 3)
  table, fresh, found = (
    traverse_util.flatten_dict(x, sep='/')[path]
    for x in (loaded, initial, adaptation.adapt(loaded, initial, (3, 3)))
  )
  expected = adaptation.resample_table(table[:9], (3, 3))
  np.testing.assert_array_equal(found[:25], expected)
  if wanted:
    np.testing.assert_array_equal(found[25:], (table if given else fresh)[-3:])
