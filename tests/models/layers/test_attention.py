import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import like
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import attention


@pytest.mark.parametrize('qk_norm', [False, True])
def test_attention_equals_flax(qk_norm):
  """Compares with the default width of heads and with another width."""
  x = like(jnp.zeros((2, 5, 12)), 1)
  for head_dim, width in ((None, 12), (7, 21)):
    theirs = nn.MultiHeadDotProductAttention(
      3, qkv_features=width, normalize_qk=qk_norm
    )
    ours = attention.MultiHeadAttention(3, head_dim, qk_norm=qk_norm)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
    own_shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
      jnp.shape, own_shapes
    )
    variables = like(shapes)
    close(ours.apply(variables, x), theirs.apply(variables, x))


def test_qk_norm_removes_the_scale_of_queries_and_keys():
  for qk_norm, check in ((True, close), (False, differ)):
    model = make_vit(qk_norm=qk_norm, norm_epsilon=1e-12)
    flat = params_of(model)
    larger = {
      path: 7 * x if {'query', 'key'} & set(path.split('/')) else x
      for path, x in flat.items()
    }
    check(run(model, flat), run(model, larger))


def test_dropped_attention_weights():
  """Single weights are dropped, not outputs. The other weights are scaled."""
  query, value = jnp.zeros((1, 4, 1, 8)), like(jnp.ones((1, 400, 1, 8))) + 1
  y, weights = attention.plain(
    query, value, value, dropout_rate=0.25, dropout_key=jax.random.key(0)
  )
  close(weights, 1 / 400)
  assert len(np.unique(y[..., 0])) == 4  # draws are independent for each query
  assert 0 < abs(y - 1).max() < 0.2


def test_fused_attention_equals_plain():
  query, key, value, bias = (
    like(jnp.zeros(shape), i, scale=1)
    for i, shape in enumerate([(2, 5, 3, 8)] * 3 + [(2, 3, 5, 5)])
  )
  for given in (None, bias):
    expected, _ = attention.plain(query, key, value, given)
    close(
      attention.fused(query, key, value, given, implementation='xla'), expected
    )


FITS = dict(
  dtype='bfloat16',
  head_dim=64,
  num_tokens=197,
  has_bias=False,
  drops_weights=False,
  train=True,
)


@pytest.mark.parametrize(
  'platform, capability, changes, reason',
  [
    ('gpu', (9, 0), {}, ''),
    ('gpu', (8, 0), {'dtype': jnp.float16, 'head_dim': 128}, ''),
    ('gpu', (9, 0), {'has_bias': True, 'train': False}, ''),
    ('gpu', (9, 0), {'has_bias': True, 'num_tokens': 196}, ''),
    ('gpu', (9, 0), {'has_bias': True}, 'even number .* 197'),
    ('gpu', (7, 5), {}, '8.0.* 7.5'),
    ('gpu', None, {}, 'NVIDIA'),  # an AMD GPU
    ('cpu', None, {}, 'NVIDIA GPU.* cpu'),
    ('tpu', None, {}, 'NVIDIA GPU.* tpu'),
    ('gpu', (9, 0), {'dtype': jnp.float32}, 'bfloat16 or float16.* float32'),
    ('gpu', (9, 0), {'head_dim': 136}, 'head_dim 8, .* 128.* 136'),
    ('gpu', (9, 0), {'head_dim': 5}, 'head_dim 8.* 5'),
    ('gpu', (9, 0), {'drops_weights': True}, 'attention_dropout_rate'),
  ],
)
def test_conditions_of_fused_attention(platform, capability, changes, reason):
  found = attention.why_not_fused(platform, capability, **{**FITS, **changes})
  assert bool(found) == bool(reason) and re.search(reason, found)


def test_fused_attention_is_used_only_if_possible(monkeypatch):
  model = make_vit(attention='fused')
  with pytest.raises(ValueError, match="'fused' .*NVIDIA GPU.*'auto'"):
    params_of(model)
  # The test pretends to have a GPU. XLA's attention replaces cuDNN's.
  plain = make_vit(
    hidden_size=32,
    dtype='bfloat16',
    num_layers=1,
    attention='plain',
    positions='relative',
    classifier='gap',
  )
  flat = params_of(plain)
  expected = run(plain, flat)
  calls = []

  def fused(query, key, value, bias=None):
    calls.append(query.shape)
    return jax.nn.dot_product_attention(
      query, key, value, bias, implementation='xla'
    )

  monkeypatch.setattr(attention, 'device', lambda: ('gpu', (9, 0)))
  monkeypatch.setattr(attention, 'fused', fused)
  close(run(plain.clone(attention='auto'), flat), expected, atol=0.05)
  assert calls == [(3, 12, 2, 16)]
  # The fused kernel does not support dropout of attention weights.
  dropping = plain.clone(attention='auto', attention_dropout_rate=0.5)
  differ(run(dropping, flat, seed=0), run(dropping, flat, seed=1))
  assert len(calls) == 1
  with pytest.raises(ValueError, match="'fused' .*attention_dropout_rate"):
    run(dropping.clone(attention='fused'), flat, seed=0)
  run(dropping, flat)  # evaluation drops nothing
  assert len(calls) == 2


RELATIVE = dict(positions='relative')


@pytest.mark.parametrize(
  'settings, in_training, in_evaluation',
  [
    ({}, True, True),
    (dict(dtype='float32'), False, False),
    (dict(head_dim=12), False, False),
    (dict(head_dim=8, hidden_size=24), True, True),  # head_dim is 8, not 24 / 2
    (dict(attention_dropout_rate=0.5), False, True),
    (RELATIVE, True, True),  # 12 tokens
    (dict(**RELATIVE, class_token=True), False, True),
    (dict(**RELATIVE, patch_dropout_rate=0.25), False, True),  # 9 tokens remain
    (dict(**RELATIVE, patch_dropout_rate=0.25, class_token=True), True, True),
  ],
)
def test_each_pass_is_fused_only_if_the_kernel_can_do_it(
  monkeypatch, settings, in_training, in_evaluation
):
  """Pretends to have a GPU and does not call the kernel."""
  model = make_vit(
    **{
      **dict(
        hidden_size=32,
        dtype='bfloat16',
        num_layers=1,
        attention='auto',
        classifier='gap',
      ),
      **settings,
    }
  )
  flat = params_of(model)
  calls = []
  monkeypatch.setattr(attention, 'device', lambda: ('gpu', (9, 0)))
  monkeypatch.setattr(
    attention, 'fused', lambda query, *_: (calls.append(query.shape), query)[1]
  )
  for seed, is_fused in ((0, in_training), (None, in_evaluation)):
    calls.clear()
    jax.eval_shape(functools.partial(run, model, seed=seed), flat)
    assert bool(calls) == is_fused, seed
