import jax
import jax.numpy as jnp
import numpy as np

from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import fractal


def alone(flat, column):
  """Returns the parameters of one column as those of a plain encoder."""
  return {
    path.replace(f'_{column}_', '_'): x
    for path, x in flat.items()
    if BLOCK not in path or path.startswith(f'{BLOCK}{column}_')
  }


def test_a_column_alone_is_a_plain_encoder():
  """Over several seeds, global drop-path runs every column, one at a time."""
  model = make_vit(num_layers=4, fractal_columns=3, global_drop_path_rate=1.0)
  flat = params_of(model)
  assert len({path.split('/')[1] for path in flat if BLOCK in path}) == 7
  columns = [run(make_vit(num_layers=2**c), alone(flat, c)) for c in range(3)]
  found = set()
  for seed in range(8):
    logits = run(model, flat, seed=seed)
    errors = [abs(logits - column).max() for column in columns]
    assert min(errors) < 2e-5
    found.add(int(np.argmin(errors)))
  assert found == {0, 1, 2}


def test_a_fractal_is_made_of_means():
  """Compares two fractals of two columns with a formula."""

  def layer(x, column, index):
    return np.tanh(x + 10 * column + index)

  x = np.float32(0.3)
  for i in range(2):
    x = (layer(x, 0, i) + layer(layer(x, 1, 2 * i), 1, 2 * i + 1)) / 2
  close(fractal.run(np.float32(0.3), 2, 4, layer, None), x)


def test_local_drop_path_drops_inputs_of_joins_and_keeps_one():
  keys = jax.random.split(jax.random.key(0), 3000)

  def draw(key):
    kept = fractal.drop_path(key, 3, 0.4, 0.0)
    return kept(0, range(1, 3)), kept(1, range(3))

  two, three = jax.vmap(draw)(keys)
  assert two.any(1).all() and three.any(1).all()
  # P(kept) = 0.6 + 0.4^n / n. The second term: all n inputs are dropped, and
  # this one is restored.
  for kept, n in ((two, 2), (three, 3)):
    close(kept.mean(0), [0.6 + 0.4**n / n] * n, atol=0.04)
  together = (two[:, 0] & three[:, 1]).mean()  # draws are independent
  close(together, two[:, 0].mean() * three[:, 1].mean(), atol=0.04)


def test_joins_take_the_mean_of_the_kept_inputs():
  def layer(x, column, index):
    return x + 10.0 ** (2 * column + index)

  def kept(index, columns):
    return jnp.array([True, False, True])[columns.start : columns.stop]

  # Column 1 (two layers per fractal) is dropped at joins.
  found = fractal.run(np.float32(0), 3, 4, layer, kept)
  half = 1e4 + 1e5  # the first join, of columns 1 and 2, keeps column 2
  close(found, (1 + half + 1e6 + 1e7) / 2)
