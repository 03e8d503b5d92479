import re

import pytest

from tests import ROOT
from vit_jax.checkpoint.pretrained import augreg
from vit_jax.checkpoint.pretrained import registry
from vit_jax.models import variants


@pytest.mark.parametrize(
  'name, path, model',
  [
    ('ViT-B_16', 'vit_models/imagenet21k/ViT-B_16.npz', 'ViT-B_16'),
    ('ViT-B_16.npz', 'vit_models/imagenet21k/ViT-B_16.npz', 'ViT-B_16'),
    ('R50+ViT-B_16', 'vit_models/imagenet21k/R50+ViT-B_16.npz', 'R50+ViT-B_16'),
    ('Mixer-L_16', 'mixer_models/imagenet21k/Mixer-L_16.npz', 'Mixer-L_16'),
    (
      'imagenet1k/Mixer-B_16',
      'mixer_models/imagenet1k/Mixer-B_16.npz',
      'Mixer-B_16',
    ),
    (
      'imagenet21k+imagenet2012/ViT-L_16-224',
      'vit_models/imagenet21k+imagenet2012/ViT-L_16-224.npz',
      'ViT-L_16',
    ),
    ('sam/ViT-B_16', 'vit_models/sam/ViT-B_16.npz', 'ViT-B_16'),
    ('sam/Mixer-B_32', 'mixer_models/sam/Mixer-B_32.npz', 'Mixer-B_32'),
    ('gsam/Mixer-B_16', 'mixer_models/gsam/Mixer-B_16.npz', 'Mixer-B_16'),
    ('LiT-B16B_2', 'vit_models/lit/LiT-B16B_2.npz', 'LiT-B16B_2'),
    ('LiT-B16B.txt', 'vit_models/lit/LiT-B16B.txt', 'LiT-B16B'),
    ('LiT-L16Ti.model', 'vit_models/lit/LiT-L16Ti.model', 'LiT-L16Ti'),
    ('BiT-M-R50x1', 'bit_models/BiT-M-R50x1.npz', None),
    ('BiT-R50x1', 'bit_models/BiT-M-R50x1.npz', None),
    (
      'big_vision/flexivit/flexivit_s_i1k',
      'big_vision/flexivit/flexivit_s_i1k.npz',
      None,
    ),
    (
      'S_32-i21k-300ep-lr_0.001-do_0.0--pets-res_384',
      'vit_models/augreg/S_32-i21k-300ep-lr_0.001-do_0.0--pets-res_384.npz',
      'ViT-S_32',
    ),
  ],
)
def test_paths_of_published_names(name, path, model):
  what = registry.locate(name)
  assert (what.path, what.model) == (path, model)
  assert not what.is_augreg_model


@pytest.mark.parametrize(
  'name, model',
  [
    ('R_Ti_16', 'R+ViT-Ti_16'),
    ('augreg/B_16', 'ViT-B_16'),
    ('ViT-Ti_16', 'ViT-Ti_16'),
    ('R50+ViT-L_32', 'R50+ViT-L_32'),
  ],
)
def test_names_of_augreg_models(name, model):
  what = registry.locate(name)
  assert what.is_augreg_model and what.model == model


@pytest.mark.parametrize(
  'name',
  [
    'testing',
    'ViT-B_17',
    'sam/',
    '/sam/ViT-B_16',
    'ViT-B_16-gap-norep',
    'R26+ViT-B_32',
    'ViT',
    '',
  ],
)
def test_unknown_names(name):
  assert registry.locate(name) is None


def test_tables_contain_only_existing_models():
  for model in augreg.MODELS.values():
    assert model in variants.VARIANTS
  for name in registry._HUB:
    what = registry.locate(name)
    assert what.hub and (what.model is None or what.model in variants.VARIANTS)
  for model in augreg.MODELS:
    file = augreg.on_hub(model)
    assert augreg.model_of(file) == augreg.MODELS[model] and '--' not in file
    assert registry.locate(file).hub[0].startswith('timm/vit_')
  assert len(set(augreg.HUB_COPIES.values())) == len(augreg.HUB_COPIES) == 35


def test_published_vits_and_mixers_are_found_by_model_name():
  unpublished = {
    name
    for name, variant in variants.VARIANTS.items()
    if registry.locate(name) is None
  }
  assert unpublished == {
    'ViT-S_16-gap-norep',
    'ViT-S_32-gap-norep',
    'ViT-B_16-gap-norep',
    'ViT-B_32-gap-norep',
    'R26+ViT-B_32',
    'Mixer-B_32',
    'testing',
    'testing-unpooled',
  }


def test_models_that_the_pages_fine_tune_are_published():
  for page, start, end, least in (
    ('README.md', 'published weights (', '…)', 6),
    ('docs/training.md', 'its short form: ', '….', 10),
  ):
    text = (ROOT / page).read_text().partition(start)[2].partition(end)[0]
    names = re.findall('`([^`]+)`', text)
    assert len(names) > least
    for name in names:
      assert registry.locate(variants.resolve(name)), name
