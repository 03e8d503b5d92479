"""Small models of timm and transformers, as references for logits.

This module needs the extra `interop`. `python -m tests.outside` writes the
logits of these libraries to `tests/reference_data/interop.json`. The tests then
can compare with the libraries on machines without them.
"""

import functools
import json
import os
import sys
import tempfile

import numpy as np
import safetensors.numpy
import safetensors.torch
import timm
from timm.layers import HybridEmbed
from timm.layers import StdConv2d
from timm.layers import StdConv2dSame
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import create_resnetv2_stem
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
import torch
import transformers
from transformers.models.vit.modeling_vit import ViTPatchEmbeddings

from tests import reference

SIZES = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=1.5, num_classes=5)
HF_SIZES = dict(
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=36,
  image_size=32,
  patch_size=16,
)


def timm_vit(**settings):
  return VisionTransformer(
    **{
      **SIZES,
      'img_size': 32,
      'patch_size': 16,
      'act_layer': 'gelu_tanh',
      **settings,
    }
  )


def timm_hybrid(layers, img_size, patch_size):
  """Returns a small hybrid with the stem of timm's `vit_base_r50_s16_224`."""
  conv = functools.partial(StdConv2dSame, eps=1e-8)
  if layers:
    stem = ResNetV2(
      layers=layers,
      channels=(128, 256),
      stem_chs=32,
      num_classes=0,
      global_pool='',
      preact=False,
      stem_type='same',
      conv_layer=conv,
    )
  else:
    stem = create_resnetv2_stem(
      3, 32, stem_type='same', preact=False, conv_layer=conv
    )
  return _with_epsilon(
    timm_vit(
      img_size=img_size,
      patch_size=patch_size,
      embed_layer=functools.partial(HybridEmbed, backbone=stem),
    )
  )


def timm_bit():
  return ResNetV2(
    layers=(1, 2),
    channels=(256, 512),
    num_classes=5,
    stem_type='fixed',
    conv_layer=functools.partial(StdConv2d, eps=1e-8),
  )


def published_bit_arrays(num_units):
  """Returns {path: shape} of a published BiT `.npz`."""
  conv, norm = 'standardized_conv2d/kernel', 'group_norm/'
  shapes, width = {f'root_block/{conv}': (7, 7, 3, 64)}, 64
  for stage, units in enumerate(num_units):
    features = 64 * 2**stage
    for unit in range(units):
      path = f'block{stage + 1}/unit{unit + 1:02d}/'
      shapes[f'{path}a/{conv}'] = (1, 1, width, features)
      shapes[f'{path}b/{conv}'] = (3, 3, features, features)
      shapes[f'{path}c/{conv}'] = (1, 1, features, 4 * features)
      for part, channels in zip(
        'abc', (width, features, features), strict=True
      ):
        for name in ('gamma', 'beta'):
          shapes[f'{path}{part}/{norm}{name}'] = (channels,)
      if not unit:
        shapes[f'{path}a/proj/{conv}'] = (1, 1, width, 4 * features)
      width = 4 * features
  shapes.update(
    {
      f'{norm}gamma': (width,),
      f'{norm}beta': (width,),
      'head/conv2d/kernel': (1, 1, width, 5),
      'head/conv2d/bias': (5,),
    }
  )
  return {f'resnet/{path}': shape for path, shape in shapes.items()}


def hf_vit(**settings):
  return transformers.ViTForImageClassification(
    transformers.ViTConfig(
      **{
        **HF_SIZES,
        'hidden_act': 'gelu_pytorch_tanh',
        'layer_norm_eps': 1e-6,
        'num_labels': 5,
        'attn_implementation': 'eager',
        **settings,
      }
    )
  )


class _HybridPatches(ViTPatchEmbeddings):
  """Patch embeddings that take the feature maps of a BiT as input."""

  def forward(self, images, **kwargs):
    return super().forward(self.backbone(images).feature_maps[-1], **kwargs)


def hf_hybrid():
  """Returns Hugging Face's ViT-hybrid, which transformers 5 no longer has.

  The array names are those of `ViTHybridForImageClassification`.
  """
  model = hf_vit(image_size=8, patch_size=2, num_channels=128)
  patches = _HybridPatches(model.config)
  patches.backbone = transformers.BitBackbone(
    transformers.BitConfig(
      embedding_size=32,
      hidden_sizes=[128],
      depths=[1],
      layer_type='bottleneck',
      global_padding='SAME',
      embedding_dynamic_padding=True,
    )
  )
  model.vit.embeddings.patch_embeddings = patches
  model.vit.embeddings.image_size = (32, 32)
  return _with_epsilon(model)


def _with_epsilon(model):
  for module in model.modules():
    if isinstance(module, torch.nn.GroupNorm):
      module.eps = 1e-6  # The published weights were trained with this value.
  return model


_OURS = dict(
  patch_size=16, hidden_size=24, mlp_dim=36, num_heads=3, num_layers=2
)
# {name: (function that makes the model of the other library, image size,
# settings of our model)}
CASES = {
  'timm ViT': (timm_vit, (32, 32), dict(_OURS, name='testing')),
  'timm ViT, wide, pooled': (
    functools.partial(
      timm_vit,
      img_size=(32, 48),
      class_token=False,
      global_pool='avg',
      fc_norm=False,
    ),
    (32, 48),
    dict(_OURS, name='testing', classifier='gap'),
  ),
  'timm ViT, no_embed_class, no qkv_bias': (
    functools.partial(timm_vit, no_embed_class=True, qkv_bias=False),
    (32, 32),
    dict(_OURS, name='testing'),
  ),
  'timm ViT, exact GELU': (
    functools.partial(timm_vit, act_layer='gelu'),
    (32, 32),
    dict(_OURS, name='testing', gelu='exact'),
  ),
  'timm ViT, registers, LayerScale, QK norm': (
    functools.partial(timm_vit, reg_tokens=2, init_values=0.1, qk_norm=True),
    (32, 32),
    dict(_OURS, name='testing', num_registers=2, layer_scale=0.1, qk_norm=True),
  ),
  'timm ViT, attention pooling': (
    functools.partial(timm_vit, class_token=False, global_pool='map'),
    (32, 32),
    dict(_OURS, name='testing', classifier='map'),
  ),
  'timm hybrid': (
    functools.partial(timm_hybrid, (1,), 32, 2),
    (32, 32),
    dict(_OURS, name='testing', patch_size=2, stem_units=(1,), stem_width=32),
  ),
  'timm hybrid, root only': (
    functools.partial(timm_hybrid, (), 40, 5),
    (40, 40),
    dict(_OURS, name='testing', patch_size=5, stem_units=(), stem_width=32),
  ),
  'timm Mixer': (
    lambda: MlpMixer(
      num_classes=5,
      img_size=32,
      patch_size=16,
      embed_dim=24,
      num_blocks=2,
      mlp_ratio=(0.5, 1.5),
      act_layer=timm.layers.get_act_layer('gelu_tanh'),
    ),
    (32, 32),
    dict(
      name='Mixer-B_16',
      hidden_size=24,
      num_layers=2,
      tokens_mlp_dim=12,
      mlp_dim=36,
    ),
  ),
  'timm BiT': (timm_bit, (45, 70), dict(name='BiT-R50x1', num_units=(1, 2))),
  'published BiT': (
    timm_bit,
    (45, 70),
    dict(name='BiT-R50x1', num_units=(1, 2)),
  ),
  'Hugging Face ViT': (hf_vit, (32, 32), dict(_OURS, name='testing')),
  'Hugging Face ViT by its own defaults': (
    functools.partial(hf_vit, hidden_act='gelu', layer_norm_eps=1e-12),
    (32, 32),
    dict(_OURS, name='testing', gelu='exact', norm_epsilon=1e-12),
  ),
  'Hugging Face hybrid': (
    hf_hybrid,
    (32, 32),
    dict(_OURS, name='testing', patch_size=2, stem_units=(1,), stem_width=32),
  ),
}


def logits(model, images):
  """Returns the other library's logits for images [B, H, W, C]."""
  with torch.no_grad():
    found = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  return getattr(found, 'logits', found).numpy()


def set_values(case, model, folder):
  """Returns the model with reference parameters, and its file.

  The parameters depend only on their names in the file. In transformers, the
  modules have other names.
  """
  if case.startswith('published'):
    path = os.path.join(folder, 'model.npz')
    np.savez(
      path,
      **{
        name: reference.torch_value_at(name, shape)
        for name, shape in published_bit_arrays((1, 2)).items()
      },
    )
    return load(model, path), path
  path = os.path.join(folder, 'model.safetensors')
  if not _is_saved_by_itself(model):
    safetensors.torch.save_file(model.state_dict(), path)
  else:
    model.save_pretrained(folder)
  safetensors.numpy.save_file(
    {
      name: reference.torch_value_at(name, array.shape)
      for name, array in safetensors.numpy.load_file(path).items()
    },
    path,
    {'format': 'pt'},
  )
  return load(model, path), path


def _is_saved_by_itself(model):
  return isinstance(model, transformers.PreTrainedModel) and not hasattr(
    model.vit.embeddings.patch_embeddings, 'backbone'
  )


def load(model, path):
  """Loads all parameters of a file into the model and returns the model."""
  if path.endswith('.npz'):
    model.load_pretrained(path)
    return model
  if not _is_saved_by_itself(model):
    model.load_state_dict(safetensors.torch.load_file(path))
    return model
  model, problems = type(model).from_pretrained(
    os.path.dirname(path), config=model.config, output_loading_info=True
  )
  assert not any(problems.values()), problems
  return model


def shapes(path):
  """Returns {name: shape as a list} of a file."""
  arrays = (
    np.load(path)
    if path.endswith('.npz')
    else safetensors.numpy.load_file(path)
  )
  return {name: list(arrays[name].shape) for name in arrays}


def main():
  facts = {
    'made_by': f'timm {timm.__version__}, transformers '
    f'{transformers.__version__}, torch {torch.__version__}'
  }
  for name, (make, size, settings) in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
      model, path = set_values(name, make(), folder)
      arrays = shapes(path)
    facts[name] = dict(
      arrays=arrays,
      image_size=size,
      settings=settings,
      logits=logits(model, reference.random_images(size)).tolist(),
    )
  with open(reference.DATA / 'interop.json', 'w', encoding='utf-8') as file:
    json.dump(facts, file)


if __name__ == '__main__':
  sys.exit(main())
