"""Mixup and CutMix: labels, partners, boxes and distributions."""

import jax
import numpy as np
import pytest
from scipy import stats

from vit_jax.augment import mixing

B, H, W, K = 8, 9, 14, 5


def make_batch():
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (B, H, W, 3)).astype(np.float32)
  return {
    'image': image,
    'label': np.eye(K, dtype=np.float32)[np.arange(B) % K],
  }


def partners(x, rules):
  return np.roll(x, 1, axis=0) if rules == 'big_vision' else x[::-1]


def mix(step=0, seed=0, **settings):
  settings = {'mixup': 0.0, 'cutmix': 0.0, **settings}
  mixer = mixing.Mixing(**settings)
  apply = jax.jit(mixer.apply)
  return jax.device_get(apply(jax.random.key(seed), make_batch(), step))


@pytest.mark.parametrize('rules', mixing.RULES)
def test_mixup_is_a_weighted_mean_with_the_partner(rules):
  batch, mixed = make_batch(), mix(mixup=0.4, rules=rules)
  other = partners(batch['label'], rules)
  differs = (batch['label'] != other).any(-1)
  part = (mixed['label'] * batch['label']).sum(-1)[differs]
  assert (part == part[0]).all() and 0 < part[0] < 1  # one for the batch
  for name in ('image', 'label'):
    expected = part[0] * batch[name] + (1 - part[0]) * partners(
      batch[name], rules
    )
    np.testing.assert_allclose(mixed[name], expected, atol=1e-6)
  np.testing.assert_allclose(mixed['label'].sum(-1), 1, rtol=1e-6)
  np.testing.assert_allclose(  # each row is a partner once
    mixed['label'].sum(0), batch['label'].sum(0), rtol=1e-6
  )


@pytest.mark.parametrize('mode', mixing.MODES)
def test_cutmix_has_the_pixels_of_two_images_in_the_ratio_of_the_label(mode):
  batch, mixed = make_batch(), mix(cutmix=1.0, mode=mode, seed=1)
  image, other = batch['image'], partners(batch['image'], 'timm')
  own = (mixed['image'] == image).all(-1)
  assert (own | (mixed['image'] == other).all(-1)).all()
  for i in range(B):
    rows, columns = np.nonzero(~own[i])
    if len(rows):  # the box is a rectangle
      height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
      assert len(rows) == height * width
  parts = own.mean((1, 2))
  expected = parts[:, None] * batch['label'] + (1 - parts[:, None]) * partners(
    batch['label'], 'timm'
  )
  np.testing.assert_allclose(mixed['label'], expected, atol=1e-6)
  number = {'batch': 1, 'pair': B // 2, 'elem': B}[mode]
  assert len(np.unique(parts)) <= number
  assert number == 1 or len(np.unique(parts)) > 2
  if mode != 'elem':
    np.testing.assert_array_equal(own, own[::-1])


def draws(count=4000, **settings):
  mixer = mixing.Mixing(**settings)
  keys = jax.random.split(jax.random.key(0), count)
  drawn = jax.jit(jax.vmap(lambda key: mixer.draw(key, (224, 224))))(keys)
  return [np.asarray(x) for x in drawn]


def test_distributions():
  cuts, fraction, box = draws(mixup=0.8, cutmix=1.0, switch_rate=0.25, rate=0.9)
  mixed = fraction < 1
  assert abs(mixed.mean() - 0.9) < 0.02
  assert abs(cuts.mean() - 0.25) < 0.02
  own = fraction[mixed & ~cuts]
  assert abs(own.mean() - 0.5) < 0.02
  assert abs(own.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.005  # of Beta(α, α)
  areas = ((box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / 224**2)[cuts]
  np.testing.assert_allclose(1 - areas, fraction[cuts], atol=1e-6)
  # λ is uniform in 0…1, and the border of the image cuts the box.
  rng = np.random.default_rng(0)
  side, center = rng.uniform(0, 1, 10**5) ** 0.5, rng.uniform(0, 1, (2, 10**5))
  ends = np.minimum(center + side / 2, 1) - np.maximum(center - side / 2, 0)
  expected = 0.9 * np.prod(ends, axis=0).mean()
  assert abs(areas.mean() - expected) < 0.03
  cuts, fraction, _ = draws(mixup=0.2, cutmix=0.0, rules='big_vision')
  assert not cuts.any() and fraction.min() >= 0.5


def test_fractions_follow_the_beta_distribution():
  keys = jax.random.split(jax.random.key(1), 20_000)
  for alpha in (0.5, 0.8, 1.0, 4.0):
    draw = jax.jit(jax.vmap(lambda key: mixing.draw_beta(key, alpha)))  # noqa: B023
    found = np.asarray(draw(keys))
    distance = stats.kstest(found, stats.beta(alpha, alpha).cdf).statistic
    assert distance < 0.012 and 0 <= found.min() and found.max() <= 1


def test_the_last_steps_are_not_mixed():
  settings = dict(mixup=0.8, cutmix=1.0, end=10)
  batch = make_batch()
  assert (mix(9, **settings)['image'] != batch['image']).any()
  for name, value in mix(10, **settings).items():
    np.testing.assert_array_equal(value, batch[name])
