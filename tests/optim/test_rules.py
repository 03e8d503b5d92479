"""Rules by parameter path, on the parameter trees of real models."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import models
from vit_jax.optim import factors
from vit_jax.optim import rules


def paths_of(name, size=32, **settings):
  model = models.get_model(name, num_classes=10, **settings)
  images = jnp.zeros((1, size, size, 3))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  return rules.paths_of(shapes['params'])


@pytest.fixture(name='paths', scope='module')
def fixture_paths():
  return paths_of('ViT-Ti_16')


def test_frozen_parameters_match_as_a_whole(paths):
  frozen = rules.find_frozen(paths, '.*embedding.*|.*encoderblock_[0-5]/.*|cls')
  kept = set(paths) - frozen
  blocks = {int(x[1]) for p in kept if (x := re.search(r'block_(\d+)/', p))}
  assert blocks == set(range(6, 12))
  assert {p for p in kept if 'block_' not in p} == {
    *('head/bias', 'head/kernel'),
    *('Transformer/encoder_norm/bias', 'Transformer/encoder_norm/scale'),
  }
  assert rules.find_frozen(paths, '') == frozenset()
  # An inline flag and groups with alternatives.
  assert rules.find_frozen(paths, '(?i)CLS|(head|x)/(kernel|bias)') == {
    *('cls', 'head/kernel', 'head/bias')
  }
  assert rules.find_frozen(paths, r'[c|x]ls|head\/bias') == {'cls', 'head/bias'}


@pytest.mark.parametrize(
  'pattern, message',
  [
    ('head', "'head' matches no .*'.*head.*' matches 2 of 200.* head/bias"),
    ('cls|encoderblok_0/.*', "config.freeze: 'encoderblok_0/.*' matches no"),
    ('.*', "'.*' matches all 200 parameters"),
    ('(cls', r"config.freeze: '\(cls' is not a regular expression"),
  ],
)
def test_rules_that_freeze_nothing_or_everything(paths, pattern, message):
  with pytest.raises(ValueError, match=message):
    rules.find_frozen(paths, pattern)


@pytest.mark.parametrize(
  'setting, expected',
  [
    ('', []),
    ('head/.*:10', [('head/.*', 10)]),
    ('a{1,2}(?:b):1e-1,c:2,', [('a{1,2}(?:b)', 0.1), ('c', 2)]),
    ((('a', 3), ('b', 0.5)), [('a', 3), ('b', 0.5)]),
    ([['a', 3.0]], [('a', 3)]),
  ],
)
def test_lr_rules_have_two_forms(setting, expected):
  assert factors.parse(setting) == expected


@pytest.mark.parametrize(
  'setting, message',
  [
    ('head/.*', "must be 'EXPRESSION:FACTOR"),
    ('a:1;b:', "must be 'EXPRESSION:FACTOR"),
    ('a:1,b', "must be 'EXPRESSION:FACTOR"),
    (('head', 2.0), "must be 'EXPRESSION:FACTOR"),
    ((('a', 'x'),), "must be 'EXPRESSION:FACTOR"),
    (3, "must be 'EXPRESSION:FACTOR"),
    ('(a:2', 'is not a regular expression'),
    ('a:0', "factor 0 of 'a' must be greater than 0.*config.freeze"),
    ('a:-1', 'factor -1 .* greater than 0'),
    ((('a', float('nan')),), 'factor nan .* greater than 0'),
  ],
)
def test_invalid_lr_rules(setting, message):
  with pytest.raises(ValueError, match=message):
    factors.parse(setting)


def test_the_first_rule_counts_and_is_multiplied_with_the_layer_decay(paths):
  frozen = {'cls'}
  found = factors.lr_factors(paths, frozen, 'head/bias:10,head/.*:3', 1.0)
  assert found.pop('head/bias') == 10 and found.pop('head/kernel') == 3
  assert set(found.values()) == {1} and 'cls' not in found
  both = factors.lr_factors(paths, frozen, 'embedding/.*:2', 0.5)
  assert both['embedding/kernel'] == 2 * 0.5**13
  assert both['Transformer/encoderblock_11/LayerNorm_0/bias'] == 0.5


@pytest.mark.parametrize(
  'setting, message',
  [
    ('heads/.*:2', "config.lr_rules: 'heads/.*' matches no parameter"),
    ('.*:2,head/.*:3', "'head/.*' has no effect, because earlier rules"),
    ('cls:2', "'cls' matches only parameters that config.freeze"),
  ],
)
def test_lr_rules_without_effect(paths, setting, message):
  with pytest.raises(ValueError, match=message):
    factors.lr_factors(paths, {'cls'}, setting, 1.0)


@pytest.mark.parametrize(
  'name, settings, num_blocks, first',
  [
    ('ViT-Ti_16', {}, 12, ('cls', 'embedding', 'Transformer/posembed_input')),
    (
      'R+ViT-Ti_16',
      {},
      12,
      ('conv_root', 'gn_root', 'cls', 'embedding', 'Transformer/posembed'),
    ),
    ('Mixer-B_16', {}, 12, ('stem',)),
    (
      'ViT-Ti_16',
      dict(classifier='map', num_registers=2, positions='relative'),
      12,
      ('registers', 'embedding'),
    ),
  ],
)
def test_layer_decay_equals_the_formula(name, settings, num_blocks, first):
  """The formula: decay ** (L + 1 - depth), as in BEiT and MAE."""
  found = factors.layer_factors(paths_of(name, **settings), 0.75)
  last = num_blocks + 1
  count = 0
  for path, factor in found.items():
    block = re.search(r'(?:encoderblock|MixerBlock)_(\d+)/', path)
    if block:
      depth = int(block[1]) + 1
    elif path.startswith(first):
      depth, count = 0, count + 1
    else:
      depth = last
      assert path.split('/')[0] in (
        *('head', 'MAPHead_0', 'pre_head_layer_norm', 'Transformer'),
      )
    assert factor == pytest.approx(0.75 ** (last - depth)), path
  assert count >= len(first)
  assert min(found.values()) == pytest.approx(0.0238, abs=5e-5)
  assert max(x for x in found.values() if x < 1) == pytest.approx(0.75)
  assert found['head/kernel'] == 1
  assert set(factors.layer_factors(found, 1.0).values()) == {1.0}


@pytest.mark.parametrize(
  'name, settings',
  [('BiT-R50x1', {}), ('testing', {'num_layers': 2, 'fractal_columns': 2})],
)
def test_layer_decay_needs_a_sequence_of_blocks(name, settings):
  with pytest.raises(ValueError, match='config.layer_decay=0.5 needs a sequ'):
    factors.layer_factors(paths_of(name, **settings), 0.5)


def test_factors_multiply_updates_and_skip_frozen_parameters():
  params = {'a': jnp.ones(2), 'b': {'c': jnp.ones(2), 'd': None}}
  tx = optax.chain(
    optax.sgd(1.0), factors.scale_updates({'a': 2.0, 'b/c': 0.5})
  )
  updates, state = tx.update(params, tx.init(params), params)
  np.testing.assert_array_equal(updates['a'], -2)
  np.testing.assert_array_equal(updates['b']['c'], -0.5)
  assert updates['b']['d'] is None and not jax.tree.leaves(state)


def test_a_line_describes_the_factors():
  assert factors.describe({'a': 1.0}) == ''
  assert factors.describe({'a': 1.0, 'b': 0.1, 'c': 0.1}) == (
    'factors of the learning rate: 0.1 for 2 array(s) such as b, '
    '1 for 1 array(s) such as a'
  )
  many = {f'{i}': float(i) for i in range(9)}
  assert ' … 5 more …, 7 for 1 array(s)' in factors.describe(many)


def test_rules_of_the_weight_decay(paths):
  """Without rules, the kernels have weight decay, and no other parameter."""
  found = factors.decay_factors(paths, {'cls'}, '')
  assert 'cls' not in found
  assert {path for path, factor in found.items() if factor} == {
    path for path in paths if path.endswith('/kernel')
  }
  assert set(found.values()) == {0, 1}
  found = factors.decay_factors(
    paths, (), 'head/kernel:100,.*encoderblock_0/.*:0,cls:1'
  )
  assert found['head/kernel'] == 100 and found['cls'] == 1
  for block in range(2):
    start = f'Transformer/encoderblock_{block}/'
    values = {x for path, x in found.items() if path.startswith(start)}
    assert values == ({0, 1} if block else {0})
  for setting, message in (
    ('heads/.*:2', "config.decay_rules: 'heads/.*' matches no parameter"),
    ('cls:2', "'cls' matches only parameters that config.freeze"),
    ('head/kernel:-1', 'config.decay_rules=.*factor -1 .* at least 0'),
  ):
    with pytest.raises(ValueError, match=message):
      factors.decay_factors(paths, {'cls'}, setting)
