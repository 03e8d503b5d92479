import numpy as np
import pytest

from vit_jax.optim import ema


def test_the_decay_warms_up_as_in_timm():
  """Values of timm.utils.ModelEmaV3, with power 3/4 and gamma 1."""
  decay = ema.make_decay(0.9998, 0.75)
  for updates, expected in ((1, 0.0), (2, 1 - 2**-0.75), (10_001, 0.999)):
    np.testing.assert_allclose(decay(updates), expected, atol=2e-6)
  np.testing.assert_allclose(decay(10**6), 0.9998, rtol=1e-6)
  assert ema.make_decay(0.9998)(1) == 0.9998


def test_an_average_that_is_slower_than_the_run_gives_a_warning():
  assert ema.half_life(0.5) == pytest.approx(1)
  line = ema.describe(0.999, 20_000)
  assert 'half-life 693 steps, 3.5 % of the run' in line
  assert 'warning' not in line and 'warning' in ema.describe(0.999, 600)
