"""Comparison with timm and transformers, and the DataLoader of PyTorch.

Only these tests need the libraries: `pip install -e '.[test,interop]'`.
"""

import itertools

import jax
import numpy as np
import pytest

from tests import digits_run
from tests import placed_values
from tests import reference
from tests.checkpoint import test_narrow_models
from tests.checkpoint import test_torch_convert
from vit_jax import data
from vit_jax import models
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.export import formats
from vit_jax.models.layers import image_scale
from vit_jax.run import setup

pytestmark = pytest.mark.interop
try:
  from tests import outside
except ImportError as error:
  pytest.skip(
    f"needs pip install -e '.[interop]': {error}", allow_module_level=True
  )


def check_close(found, expected):
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


@pytest.mark.parametrize('case', outside.CASES)
def test_logits(case, tmp_path):
  make, size, settings = outside.CASES[case]
  there, path = outside.set_values(case, make(), tmp_path)
  images = reference.random_images(size)
  expected = outside.logits(there, images)

  # Load their weights in vit_jax.
  model, params = test_torch_convert.adapted(
    weights_file.load(path, num_heads=3), settings, size
  )
  with jax.default_matmul_precision('highest'):
    check_close(model.apply({'params': params}, images, train=False), expected)

  # Load our weights, with other values, in their library.
  if case.startswith('Hugging Face') or 'no_' in case:
    return
  params = reference.params_like(params)
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images, train=False)
  weights_file.save(path, params)
  check_close(outside.logits(outside.load(there, path), images), logits)


@pytest.mark.parametrize('how', [None, 'fork', 'spawn'])
def test_a_data_loader_gives_the_batches_of_arrays(how):
  from torch.utils import data as torch_data

  loader = torch_data.DataLoader(
    digits_run.InOrder(100),
    batch_size=32,
    drop_last=True,
    num_workers=2 if how else 0,
    multiprocessing_context=how,
  )
  given = data.from_batches(loader, num_classes=10, prepare=True)
  batches, expected = (
    list(
      itertools.islice(
        setup.get_datasets(digits_run.make_config(), given=x).train(), 3
      )
    )
    for x in (given, data.from_arrays(*digits_run.arrays()['train']))
  )
  digits_run.assert_equal(batches, expected)


def test_committed_logits_equal_the_installed_libraries(tmp_path):
  facts = test_torch_convert.facts()
  assert facts.keys() - {'made_by'} == outside.CASES.keys()
  for case, (make, size, _) in outside.CASES.items():
    (tmp_path / case).mkdir()
    there, path = outside.set_values(case, make(), tmp_path / case)
    assert outside.shapes(path) == facts[case]['arrays']
    check_close(
      outside.logits(there, reference.random_images(size)),
      np.asarray(facts[case]['logits']),
    )


def test_timm_reads_our_npz(tmp_path):
  """timm has its own reader for the published format."""
  make, size, settings = outside.CASES['timm ViT']
  _, path = outside.set_values('timm ViT', make(), tmp_path)
  model, params = test_torch_convert.adapted(
    weights_file.load(path, num_heads=3), settings, size
  )
  params = reference.params_like(params)
  weights_file.save(tmp_path / 'x.npz', params)
  there = make()
  there.load_pretrained(str(tmp_path / 'x.npz'))
  images = reference.random_images(size)
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images, train=False)
  check_close(outside.logits(there, images), logits)


@pytest.mark.parametrize(
  'settings',
  [
    dict(),
    dict(classifier='gap', gelu='exact'),
    dict(classifier='map', num_registers=2, layer_scale=0.1, qk_norm=True),
  ],
  ids=str,
)
def test_timm_loads_an_exported_folder(tmp_path, settings):
  """Uses the call in the README: timm.create_model('local-dir:…')."""
  sizes = dict(
    patch_size=16, hidden_size=24, mlp_dim=36, num_heads=3, num_layers=2
  )
  settings, size = sizes | settings, (32, 48)
  model = models.get_model('testing', num_classes=5, **settings)
  params = reference.params_like(reference.initial_params(model, size))
  formats.export(
    trained_model.TrainedModel(
      'w', 'testing', settings, model, params, size, size, tuple('abcde')
    ),
    str(tmp_path / 'w/'),
  )
  there = outside.timm.create_model(f'local-dir:{tmp_path}/w', pretrained=True)
  assert there.pretrained_cfg['label_names'] == list('abcde')
  images = reference.random_images(size)
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images, train=False)
  assert np.ptp(logits) > 0.01
  check_close(outside.logits(there, images), logits)


@pytest.mark.parametrize(
  'name',
  [
    *('beit', 'clip_quickgelu', 'deit_distilled', 'dinov2_registers'),
    *('dinov2_swiglu', 'dinov3', 'eva02_gated', 'perception'),
    *('parallel_qk_norm', 'relpos_shared', 'rope_mixed', 'siglip_remainder'),
  ],
)
def test_timm_loads_an_export_of_its_own_models(name, tmp_path):
  """Loads a model of timm, exports it, and loads it in timm: equal logits.

  timm computes in float64. In float32, torch rounds by up to 2e-5 of the
  largest logit, and differently on each kind of CPU; vit_jax by 2e-6.
  """
  trained = test_narrow_models.load(tmp_path, name)
  formats.export(trained, str(tmp_path / 'out/'))
  images = placed_values.images(trained.image_size)
  before, after = (
    outside.logits(
      outside.timm.create_model(f'local-dir:{path}', pretrained=True).double(),
      mean_and_std(trained, images).astype(np.float64),
    )
    for path in (tmp_path, tmp_path / 'out')
  )
  # The arrays of DeiT's heads are rounded once more, since we keep their mean.
  once = np.finfo(np.float32).epsneg if name == 'deit_distilled' else 1e-12
  np.testing.assert_allclose(
    after, before, rtol=0, atol=once * np.abs(before).max()
  )
  check_close(test_narrow_models.outputs(trained), before)


def mean_and_std(trained, images):
  """Returns images in [-1, 1] as timm gets them."""
  model = trained.model
  return np.asarray(
    image_scale.standardize(images, model.image_mean, model.image_std)
  )
