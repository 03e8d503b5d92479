import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import IMAGES
from tests.tiny_model import like
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import dropout


@pytest.mark.parametrize('rate', [0.1, 0.75])
def test_dropout_keeps_the_mean_and_drops_independently(rate):
  x = like(jnp.zeros((200, 51))) + 3
  for dtype in (jnp.float32, jnp.bfloat16):
    y = dropout.dropout(x.astype(dtype), rate, jax.random.key(1))
    assert y.dtype == dtype
  y = np.asarray(dropout.dropout(x, rate, jax.random.key(0)))
  dropped = y == 0
  close(y[~dropped], x[~dropped] / (1 - rate), 1e-3)
  deviation = (rate * (1 - rate)) ** 0.5
  assert abs(dropped.mean() - rate) < 5 * deviation / dropped.size**0.5
  noise = (dropped - rate) / deviation  # neighbors are not correlated
  for a, b in (
    (noise[:, 1:], noise[:, :-1]),
    (noise[:, 2:], noise[:, :-2]),
    (noise[1:], noise[:-1]),
  ):
    assert abs((a * b).mean()) < 5 / a.size**0.5
  assert dropout.dropout(x, rate, None) is x
  assert (dropout.dropout(x, 1e-9, jax.random.key(0)) == x).all()


def test_drop_path_drops_samples_and_keeps_the_mean():
  y = like(jnp.zeros((4000, 3)), 1) + 1
  dropped = dropout.drop_path(y, 0.3, jax.random.key(0))
  alive = (dropped != 0).all(1)
  assert (alive == (dropped != 0).any(1)).all()  # entire samples only
  close(dropped[alive], y[alive] / 0.7)
  assert abs(alive.mean() - 0.7) < 5 * (0.3 * 0.7 / 4000) ** 0.5
  close(dropout.path_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
  close(dropout.path_rates(0.3, 4, 'constant'), [0.3] * 4)
  assert dropout.drop_path(y, 0.3, None) is y


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_drop_path_grows_with_depth(make):
  """With a rate of nearly 1, three layers have the rates 0, 0.5 and 1."""
  model = make(num_layers=3, drop_path_rate=1 - 1e-7)
  flat = params_of(model)
  images = np.repeat(IMAGES[:1], 3, axis=0)
  outcomes = np.unique(
    np.concatenate(
      [run(model, flat, images, seed=seed) for seed in range(9)]
    ).round(3),
    axis=0,
  )
  # Each of the two branches in the second layer is dropped independently.
  assert len(outcomes) == 4
  first = run(make(num_layers=1), flat, images)
  assert abs(outcomes - first[:1]).max(1).min() < 2e-3
  close(run(model, flat), run(make(num_layers=3), flat))


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_a_constant_rate_of_drop_path(make):
  """With a rate of nearly 1, no layer changes the tokens of any image."""
  model = make(
    num_layers=3, drop_path_rate=1 - 1e-7, drop_path_schedule='constant'
  )
  flat = params_of(model)
  without_layers = {
    path: 0 * x if 'Block' in path or 'block' in path else x
    for path, x in flat.items()
  }
  expected = run(make(num_layers=3), without_layers)
  close(run(model, flat, seed=0), expected)
  differ(run(model, flat), expected)


@pytest.mark.parametrize(
  'settings, num_draws', [({}, 1 + 2 * 6), ({'fractal_columns': 2}, 1 + 3 * 4)]
)
def test_each_random_key_is_used_once(settings, num_draws, monkeypatch):
  """Collects all keys of a pass: embeddings, attention, MLP and branches."""
  keys = []

  def recorded(function):
    def record(x, rate, key):
      if key is not None:  # initialization draws nothing
        keys.append(tuple(np.ravel(jax.random.key_data(key))))
      return function(x, rate, key)

    return record

  for name in ('dropout', 'drop_path'):
    monkeypatch.setattr(dropout, name, recorded(getattr(dropout, name)))
  model = make_vit(
    dropout_rate=0.1, attention_dropout_rate=0.1, drop_path_rate=0.1, **settings
  )
  flat = params_of(model)
  run(model, flat, seed=0)
  assert len(set(keys)) == len(keys) == num_draws


def test_dropout_of_embeddings_has_its_own_rate():
  flat = params_of(make_vit())
  for settings, check in (
    (dict(embedding_dropout_rate=0.5), differ),
    (dict(dropout_rate=0.5, embedding_dropout_rate=0.0), differ),
    (dict(embedding_dropout_rate=0.0), close),
  ):
    check(run(make_vit(**settings), flat, seed=0), run(make_vit(), flat))
  nothing_else = make_vit(num_layers=1, embedding_dropout_rate=0.5)
  same = make_vit(num_layers=1, dropout_rate=0.5)
  zeroed = {path: 0 * x if BLOCK in path else x for path, x in flat.items()}
  close(run(nothing_else, zeroed, seed=3), run(same, zeroed, seed=3))
