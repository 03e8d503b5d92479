"""Models of vit-pytorch, without PyTorch.

`tests/test_interop_vit_pytorch.py` compares the logits with those of the
package.
"""

import json

import numpy as np
import pytest
import safetensors.numpy

from vit_jax import checkpoint
from vit_jax.export import formats

ARGUMENTS = dict(
  image_size=[8, 12],
  patch_size=4,
  num_classes=5,
  dim=6,
  depth=2,
  heads=2,
  dim_head=4,
  mlp_dim=7,
)
STATISTICS = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)


def state_dict(arguments, num_tokens, shape=(1,), seed=0):
  """Returns random arrays; `shape` precedes that of tokens and positions."""
  a = {'channels': 3, 'dim_head': 64, **arguments}
  width, inner = a['dim'], a['heads'] * a['dim_head']
  pixels = a['channels'] * a['patch_size'] ** 2
  shapes = {
    'cls_token': (*shape, num_tokens, width),
    'pos_embedding': (*shape, 6 + num_tokens, width),
    'to_patch_embedding.1.weight': (pixels,),
    'to_patch_embedding.1.bias': (pixels,),
    'to_patch_embedding.2.weight': (width, pixels),
    'to_patch_embedding.2.bias': (width,),
    'mlp_head.weight': (a['num_classes'], width),
    'mlp_head.bias': (a['num_classes'],),
  }
  norms = ['to_patch_embedding.3', 'transformer.norm']
  for i in range(a['depth']):
    layer = f'transformer.layers.{i}.'
    norms += [f'{layer}0.norm', f'{layer}1.net.0']
    shapes[f'{layer}0.to_qkv.weight'] = 3 * inner, width
    if (a['heads'], a['dim_head']) != (1, width):
      shapes[f'{layer}0.to_out.0.weight'] = width, inner
      shapes[f'{layer}0.to_out.0.bias'] = (width,)
    for name, sizes in (
      ('1', (a['mlp_dim'], width)),
      ('4', (width, a['mlp_dim'])),
    ):
      shapes[f'{layer}1.net.{name}.weight'] = sizes
      shapes[f'{layer}1.net.{name}.bias'] = sizes[:1]
  for norm in norms:
    shapes |= {f'{norm}.weight': (width,), f'{norm}.bias': (width,)}
  rng = np.random.default_rng(seed)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def write(folder, arrays, **arguments):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  if arguments:
    (folder / 'config.json').write_text(json.dumps({'vit_pytorch': arguments}))
  return str(folder)


@pytest.mark.parametrize(
  'changes, num_tokens, shape, settings',
  [
    (dict(version='1.6.5'), 1, (1,), dict(classifier='token')),
    (dict(version='1.16.0'), 1, (1,), dict(classifier='token')),
    (dict(version='1.16.1'), 1, (), dict(classifier='token')),
    (dict(version='1.16.0', pool='mean'), 0, (1,), dict(has_token=False)),
    (
      dict(version='1.6.5', pool='mean'),
      *(1, (1,)),
      dict(classifier='gap', class_token=True, pool_all_tokens=True),
    ),
    (
      dict(
        version='1.26.11', pool='mean', heads=1, dim_head=6, patch_size=[4, 4]
      ),
      *(0, ()),
      dict(classifier='gap', has_token=False, attention_out=False),
    ),
  ],
)
def test_both_forms_are_read_and_written(
  changes, num_tokens, shape, settings, tmp_path
):
  arguments = {**ARGUMENTS, **changes}
  sizes = {**arguments, 'patch_size': 4}
  sizes.pop('version')
  arrays = state_dict(sizes, num_tokens, shape)
  source = write(tmp_path / 'theirs', arrays, **arguments)
  trained = checkpoint.load_model(source, overrides=STATISTICS)
  assert trained.image_size == (8, 12) and trained.model.patch_size == 4
  assert trained.model.norm_epsilon == 1e-5 and trained.model.gelu == 'exact'
  for name, value in settings.items():
    assert getattr(trained.model, name) == value
  # Pixels of a patch are in the order (row, column, channel).
  np.testing.assert_array_equal(
    trained.params['embedding']['kernel'][2, 3, 1],
    arrays['to_patch_embedding.2.weight'][:, (2 * 4 + 3) * 3 + 1],
  )
  formats.export(trained, str(tmp_path / 'ours'), arguments['version'])
  found = safetensors.numpy.load_file(tmp_path / 'ours/model.safetensors')
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, name)
  stored = json.loads((tmp_path / 'ours/config.json').read_text())
  assert sizes.items() <= stored['vit_pytorch'].items()
  again = checkpoint.load_model(str(tmp_path / 'ours'))
  assert again.model == trained.model


def test_a_version_that_cannot_represent_the_model(tmp_path):
  arguments = {**ARGUMENTS, 'version': '1.6.5', 'pool': 'mean'}
  source = write(tmp_path / 'theirs', state_dict(ARGUMENTS, 1), **arguments)
  trained = checkpoint.load_model(source, overrides=STATISTICS)
  with pytest.raises(ValueError, match='1.26.11 has no arguments for this'):
    formats.export(trained, str(tmp_path / 'ours'), '1.26.11')
  assert not (tmp_path / 'ours').exists()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({}, r'(?s)heads and pool.*config.json.*"heads": 3'),
    ({**ARGUMENTS, 'depths': 2}, 'depths is unknown'),
    ({**ARGUMENTS, 'heads': '2'}, "heads is '2', but must be an integer"),
    ({**ARGUMENTS, 'pool': 'max'}, "pool='max' is neither"),
    ({**ARGUMENTS, 'pool': 'mean'}, 'version is missing'),
    ({**ARGUMENTS, 'patch_size': [4, 2]}, 'not square'),
    (ARGUMENTS, '(?s)image_mean.*image_std'),
  ],
)
def test_nothing_is_guessed(arguments, message, tmp_path):
  source = write(tmp_path / 'theirs', state_dict(ARGUMENTS, 1), **arguments)
  with pytest.raises(ValueError, match=message):
    checkpoint.load_model(source)
  if not arguments:  # The activation and the pooling would still be open.
    with pytest.raises(ValueError, match=message):
      checkpoint.load_model(source, overrides=dict(num_heads=2, **STATISTICS))


@pytest.mark.parametrize('channels', [1, 4])
def test_channels_are_those_of_the_config(channels, tmp_path):
  """Patches of 4 x 4 with 4 channels have as many values as 8 x 8 with 1."""
  arguments = {**ARGUMENTS, 'channels': channels}
  arrays = state_dict(arguments, 1)
  given = dict(image_mean=(0.5,) * channels, image_std=(0.5,) * channels)
  source = write(tmp_path / 'theirs', arrays, **arguments, version='1.6.5')
  trained = checkpoint.load_model(source, overrides=given)
  kernel = trained.params['embedding']['kernel']
  assert kernel.shape == (4, 4, channels, ARGUMENTS['dim'])
  formats.export(trained, str(tmp_path / 'ours'), '1.6.5')
  again = checkpoint.load_model(str(tmp_path / 'ours'))
  np.testing.assert_array_equal(again.params['embedding']['kernel'], kernel)
  write(tmp_path / 'theirs', arrays, **arguments | {'channels': 2})
  with pytest.raises(ValueError, match='no square patches with channels=2'):
    checkpoint.load_model(source, overrides=given)
