"""Comparison with transformers: every layout, loaded without any option."""

import json

import jax
import numpy as np
import pytest

import vit_jax

pytestmark = pytest.mark.interop
try:
  import torch
  import transformers
except ImportError as error:
  pytest.skip(
    f"needs pip install -e '.[interop]': {error}", allow_module_level=True
  )

MEAN, STD = [0.48, 0.45, 0.4], [0.26, 0.25, 0.27]
SIZES = dict(
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=36,
  image_size=32,
  patch_size=16,
)
TEXT = dict(
  hidden_size=24,
  num_hidden_layers=1,
  num_attention_heads=3,
  intermediate_size=24,
  vocab_size=64,
)
TOWERS = dict(vision_config=SIZES, text_config=TEXT)
# {name: (prefix of the config, model, settings)}
CASES = {
  'ViT': ('ViT', 'ViTForImageClassification', SIZES),
  'ViT, tanh': (
    'ViT',
    'ViTForImageClassification',
    SIZES | {'hidden_act': 'gelu_new', 'layer_norm_eps': 1e-3},
  ),
  'ViT, pooler': ('ViT', 'ViTModel', SIZES),
  'DeiT': ('DeiT', 'DeiTForImageClassification', SIZES),
  'DeiT, two heads': ('DeiT', 'DeiTForImageClassificationWithTeacher', SIZES),
  'MAE': ('ViTMAE', 'ViTMAEModel', SIZES | {'mask_ratio': 0.0}),
  'DINOv2': ('Dinov2', 'Dinov2Model', SIZES),
  'DINOv2, SwiGLU': ('Dinov2', 'Dinov2Model', SIZES | {'use_swiglu_ffn': True}),
  'DINOv2, registers': (
    'Dinov2WithRegisters',
    'Dinov2WithRegistersModel',
    SIZES,
  ),
  'DINOv3': ('DINOv3ViT', 'DINOv3ViTModel', SIZES | {'num_register_tokens': 2}),
  'DINOv3, SwiGLU': (
    'DINOv3ViT',
    'DINOv3ViTModel',
    SIZES | {'use_gated_mlp': True, 'hidden_act': 'silu'},
  ),
  'CLIP, tower': ('CLIPVision', 'CLIPVisionModel', SIZES),
  'CLIP, projection': ('CLIPVision', 'CLIPVisionModelWithProjection', SIZES),
  'CLIP': ('CLIP', 'CLIPModel', TOWERS | {'projection_dim': 20}),
  'SigLIP, tower': ('SiglipVision', 'SiglipVisionModel', SIZES),
  'SigLIP': ('Siglip', 'SiglipModel', TOWERS),
  'BEiT': (
    'Beit',
    'BeitForImageClassification',
    SIZES | {'use_relative_position_bias': True},
  ),
  'BEiT, class token': (
    'Beit',
    'BeitForImageClassification',
    SIZES
    | {'use_mean_pooling': False, 'use_absolute_position_embeddings': True},
  ),
  'Data2Vec': (
    'Data2VecVision',
    'Data2VecVisionForImageClassification',
    SIZES | {'use_shared_relative_position_bias': True},
  ),
}


def make(case):
  """Returns a model of transformers with random parameters."""
  kind, model, settings = CASES[case]
  model = getattr(transformers, model)(
    getattr(transformers, f'{kind}Config')(**settings)
  )
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, x in model.named_parameters():
      is_scale = 'norm' in name and name.endswith('weight')
      x.copy_(torch.randn(x.shape, generator=generator) * 0.3 + is_scale)
  return model.eval()


def outputs(model, images):
  """Returns logits, image embeddings or features of images in [-1, 1]."""
  pixels = ((images + 1) / 2 - np.float32(MEAN)) / np.float32(STD)
  pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    if hasattr(model, 'get_image_features'):
      found = model.get_image_features(pixel_values=pixels)
    else:
      found = model(pixel_values=pixels)
  for name in ('logits', 'image_embeds', 'pooler_output'):
    if getattr(found, name, None) is not None:
      return getattr(found, name).numpy()
  if torch.is_tensor(found):
    return found.numpy()
  return found.last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize('case', CASES)
def test_outputs_of_every_layout(case, tmp_path):
  model = make(case)
  model.save_pretrained(tmp_path)
  preprocessor = dict(
    size={'height': 32, 'width': 32}, resample=3, image_mean=MEAN, image_std=STD
  )
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
  trained = vit_jax.load(str(tmp_path))
  images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
  images = images.astype(np.float32)
  expected = outputs(model, images)
  with jax.default_matmul_precision('highest'):
    found = (
      trained.logits(images)
      if trained.model.num_classes
      else trained.features(images)
    )
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )
