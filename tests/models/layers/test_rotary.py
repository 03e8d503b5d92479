import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import GRID
from tests.tiny_model import IMAGES
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import patches
from vit_jax.models.layers import rotary

LAYOUT = patches.Layout(GRID, num_tokens=1, num_registers=2)
KINDS = {
  'axial': rotary.Rotary('axial', indexing='xy', offset=1.0, grid=(8, 9)),
  'normalized': rotary.Rotary('normalized', halves=True),
  'mixed': rotary.Rotary('mixed'),
}


def turns_of(settings, layout, head_dim=8, num_heads=2):
  """Returns cosines and sines [1, T, d / 2] or [1, T, H, d / 2]."""
  turns = settings.turns(layout, head_dim)
  if settings.kind != 'mixed':
    return turns
  module = rotary.MixedTurns(settings=settings)
  return module.init_with_output(
    jax.random.key(0), *turns, num_heads, head_dim
  )[0]


@pytest.mark.parametrize('settings', KINDS.values(), ids=KINDS)
def test_the_product_of_rotated_tokens_depends_on_their_offset(settings):
  rng = np.random.default_rng(0)
  query, key = rng.standard_normal((2, 1, 1, 2, 8))
  turns = turns_of(settings, LAYOUT)
  both = [
    rotary.rotate(jnp.broadcast_to(x, (1, 15, 2, 8)), *turns, settings.halves)
    for x in (query, key)
  ]
  products = np.einsum('bqhd,bkhd->hqk', *both)
  # Class token and registers are not rotated.
  for x, rotated in zip((query, key), both, strict=True):
    np.testing.assert_array_equal(
      rotated[:, [0, 13, 14]], np.float32(np.repeat(x, 3, axis=1))
    )
  grid = products[:, 1:13, 1:13].reshape(2, 4, 3, 4, 3)
  close(grid[:, 1:, 1:, 1:, 1:], grid[:, :-1, :-1, :-1, :-1])
  differ(grid[:, 0, 0, 1, 0], grid[:, 0, 0, 0, 1])
  close(np.einsum('hqqd->hqd', grid.reshape(2, 12, 12, 1)).std(1), 0)


def test_axial_angles_equal_the_formula():
  """Checks each angle, for other grids than that of pre-training."""
  settings = KINDS['axial']
  cosines, sines = settings.turns(LAYOUT, 8)
  for row in range(4):
    for column in range(3):
      x, y = (column + 1) / 3 * 9, (row + 1) / 4 * 8
      angles = [x, x / 100, y, y / 100]  # 10 000 ** (1 / 2) is 100
      token = 1 + 3 * row + column
      close(cosines[0, token], np.cos(angles), 1e-5)
      close(sines[0, token], np.sin(angles), 1e-5)


def test_normalized_angles_equal_the_formula():
  cosines, sines = KINDS['normalized'].turns(LAYOUT, 8)
  for row in range(4):
    for column in range(3):
      y, x = 2 * (row + 0.5) / 4 - 1, 2 * (column + 0.5) / 3 - 1
      angles = 2 * np.pi * np.array([y, y / 10, x, x / 10])
      token = 1 + 3 * row + column
      close(cosines[0, token], np.cos(angles), 1e-5)
      close(sines[0, token], np.sin(angles), 1e-5)


@pytest.mark.parametrize('halves', [False, True])
def test_pairs_of_channels_are_rotated_in_float32(halves):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 5, 2, 8)), jnp.bfloat16)
  angles = rng.uniform(0, 100, (1, 5, 4))
  turns = jnp.float32(np.cos(angles)), jnp.float32(np.sin(angles))
  rotated = rotary.rotate(x, *turns, halves)
  pairs = [(i, i + 4) if halves else (2 * i, 2 * i + 1) for i in range(4)]
  expected = np.zeros(x.shape, np.complex128)
  for i, (first, second) in enumerate(pairs):
    numbers = np.float64(x[..., first]) + 1j * np.float64(x[..., second])
    expected[..., i] = numbers * np.exp(1j * angles[..., i : i + 1])
    close(np.float32(rotated[..., first]), expected[..., i].real, 0.01)
    close(np.float32(rotated[..., second]), expected[..., i].imag, 0.01)
  assert rotated.dtype == jnp.bfloat16
  # The result is rounded once.
  exact = jnp.asarray(expected[..., 0].real, jnp.bfloat16)
  np.testing.assert_array_equal(rotated[..., pairs[0][0]], exact)


def test_initial_frequencies_are_axial_ones_turned_by_a_random_angle():
  settings = KINDS['mixed']
  x, y = settings.init_frequencies(jax.random.key(0), (2, 100, 4), jnp.float32)
  close(np.hypot(x, y), np.broadcast_to([1, 10**-0.5, 1, 10**-0.5], (100, 4)))
  close(x[:, :2] * x[:, 2:] + y[:, :2] * y[:, 2:], np.zeros((100, 2)))
  assert x[:, 0].min() < -0.9 and x[:, 0].max() > 0.9


@pytest.mark.parametrize('kind', ['axial', 'mixed'])
def test_models_with_rotary_positions(kind):
  """Scan and remat agree with the plain model."""
  settings = dict(rotary=kind, num_registers=1)
  model = make_vit(**settings)
  flat = params_of(model)
  own = {path for path in flat if 'rotary' in path}
  assert own == (
    {f'{BLOCK}{i}/rotary/frequencies' for i in range(2)}
    if kind == 'mixed'
    else set()
  )
  logits = run(model, flat)
  assert logits.shape == (3, 16)
  others = {path: x for path, x in flat.items() if path not in own}
  differ(logits, run(make_vit(**settings | {'rotary': None}), others))
  close(logits, run(make_vit(**settings, scan=True, remat='full'), flat))


def test_patch_dropout_keeps_the_angles_of_the_remaining_patches(monkeypatch):
  """The output is that of an image with every other row, stretched."""
  kept = np.broadcast_to([3, 4, 5, 9, 10, 11], (3, 6))
  monkeypatch.setattr(patches.Layout, 'sample', lambda *args: kept)
  settings = dict(classifier='gap', positions='none', num_layers=1)
  settings |= dict(rotary='axial', rotary_grid=GRID)
  model = make_vit(**settings, patch_dropout_rate=0.5)
  flat = params_of(model)
  dropped = run(model, flat, seed=0)
  images = np.concatenate([IMAGES[:, 8:16], IMAGES[:, 24:]], axis=1)
  close(dropped, run(model, flat, images))
  differ(
    dropped, run(make_vit(**settings | {'rotary_grid': None}), flat, images)
  )


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(rotary='spiral'), "rotary='spiral' is not one of axial"),
    (dict(rotary='axial', rotary_indexing='yx'), "rotary_indexing='yx'"),
    (dict(rotary='axial', head_dim=6), 'multiple of 4, not 6'),
    (dict(rotary='mixed', rotary_grid=(2, 2)), "needs rotary='axial'"),
    (dict(rotary='axial', rotary_grid=(2,)), r'\(rows, columns\)'),
    (dict(rotary='axial', rotary_temperature=0.0), 'must be above 0'),
    (dict(rotary_offset=1.0), 'rotary_offset=1.0 has no effect'),
  ],
)
def test_settings_that_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    make_vit(**settings)
