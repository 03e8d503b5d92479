"""Comparison with the package vit-pytorch, in both directions."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from vit_jax import checkpoint
from vit_jax.export import formats

pytestmark = pytest.mark.interop
try:
  import torch
  import vit_pytorch
except ImportError as error:
  pytest.skip(
    f"needs pip install -e '.[interop]': {error}", allow_module_level=True
  )

SIZES = dict(
  image_size=(16, 24),
  patch_size=4,
  num_classes=5,
  dim=24,
  depth=2,
  heads=3,
  mlp_dim=40,
)
HALF = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(pool='mean'),
    dict(dim_head=10, channels=1),
    dict(heads=1, dim_head=24, pool='mean'),
    dict(image_size=16),
  ],
)
@pytest.mark.parametrize('is_old', [False, True])
def test_logits_are_equal(changes, is_old, tmp_path):
  arguments = {**SIZES, **changes}
  pool = arguments.get('pool', 'cls')
  torch.manual_seed(0)
  # In the old form, there is always a class token; the mean includes it.
  theirs = vit_pytorch.ViT(**arguments | ({'pool': 'cls'} if is_old else {}))
  theirs.pool = pool
  for x in theirs.parameters():
    if x.ndim == 1:
      torch.nn.init.normal_(x, 1.0, 0.3)
  arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
  if is_old:
    for name in ('cls_token', 'pos_embedding'):
      arrays[name] = arrays[name][None]
  version = '1.6.5' if is_old else vit_pytorch_version()
  folder = tmp_path / 'theirs'
  folder.mkdir()
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  config = {'vit_pytorch': {**arguments, 'version': version}}
  (folder / 'config.json').write_text(json.dumps(config))
  channels = arguments.get('channels', 3)
  statistics = {name: x[:channels] for name, x in HALF.items()}
  ours = checkpoint.load_model(str(folder), overrides=statistics)

  shape = (2, *ours.image_size, channels)
  images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  with torch.no_grad():
    expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  with jax.default_matmul_precision('highest'):
    logits = ours.model.apply({'params': ours.params}, images, train=False)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, atol=1e-5 * scale)

  formats.export(ours, str(tmp_path / 'ours'), version)
  found = safetensors.numpy.load_file(tmp_path / 'ours/model.safetensors')
  stored = json.loads((tmp_path / 'ours/config.json').read_text())
  if not is_old:
    found_arguments = {
      name: tuple(x) if isinstance(x, list) else x
      for name, x in stored['vit_pytorch'].items()
      if name != 'version'
    }
    again = vit_pytorch.ViT(**found_arguments)
    again.load_state_dict({k: torch.tensor(x) for k, x in found.items()})
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)


def vit_pytorch_version():
  import importlib.metadata

  return importlib.metadata.version('vit-pytorch')


def test_a_fresh_model_has_the_same_initial_scale():
  settings = dict(
    patch_size=4, hidden_size=64, mlp_dim=64, num_heads=2, num_layers=1
  )
  model = vit_jax.models.get_model(
    'ViT-Ti_16', num_classes=2, embedding_std=1.0, **settings
  )
  params = model.init(
    jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
  )['params']
  theirs = vit_pytorch.ViT(
    image_size=32,
    patch_size=4,
    num_classes=2,
    dim=64,
    depth=1,
    heads=2,
    mlp_dim=64,
  )
  table = params['Transformer']['posembed_input']['pos_embedding']
  assert np.std(table) == pytest.approx(
    theirs.pos_embedding.std().item(), rel=0.1
  )
  assert np.std(params['cls']) == pytest.approx(1, rel=0.4)
