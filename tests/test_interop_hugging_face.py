"""Comparison with transformers: every layout, loaded without any option."""

import dataclasses
import importlib
import json
import re

import jax
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from tests import reference
from tests.run import test_published_mae
import vit_jax
from vit_jax.checkpoint.other_libraries import origin
from vit_jax.data import data_settings
from vit_jax.data import preprocess
from vit_jax.export import formats
from vit_jax.tasks import task

pytestmark = pytest.mark.interop
try:
  import torch
  import transformers
  from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil,
  )

  from tests import outside
except ImportError as error:
  pytest.skip(
    f"needs pip install -e '.[interop]': {error}", allow_module_level=True
  )

QKV = 'query', 'key', 'value'
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
  'DINOv2, classes': ('Dinov2', 'Dinov2ForImageClassification', SIZES),
  'DINOv2, registers, classes': (
    'Dinov2WithRegisters',
    'Dinov2WithRegistersForImageClassification',
    SIZES,
  ),
  'DINOv3': ('DINOv3ViT', 'DINOv3ViTModel', SIZES | {'num_register_tokens': 2}),
  'DINOv3, SwiGLU': (
    'DINOv3ViT',
    'DINOv3ViTModel',
    SIZES | {'use_gated_mlp': True, 'hidden_act': 'silu'},
  ),
  'DINOv3, four registers': (
    'DINOv3ViT',
    'DINOv3ViTModel',
    SIZES | {'num_register_tokens': 4},
  ),
  'DINOv3, biases': (
    'DINOv3ViT',
    'DINOv3ViTModel',
    SIZES | {'key_bias': True, 'mlp_bias': False, 'proj_bias': False},
  ),
  'CLIP, tower': ('CLIPVision', 'CLIPVisionModel', SIZES),
  'CLIP, projection': ('CLIPVision', 'CLIPVisionModelWithProjection', SIZES),
  'CLIP': ('CLIP', 'CLIPModel', TOWERS | {'projection_dim': 20}),
  'CLIP, classes': ('CLIP', 'CLIPForImageClassification', TOWERS),
  'SigLIP, tower': ('SiglipVision', 'SiglipVisionModel', SIZES),
  'SigLIP': ('Siglip', 'SiglipModel', TOWERS),
  'SigLIP, classes': ('Siglip', 'SiglipForImageClassification', TOWERS),
  'AIMv2': ('Aimv2Vision', 'Aimv2VisionModel', SIZES),
  'AIMv2, biases': (
    'Aimv2Vision',
    'Aimv2VisionModel',
    SIZES | {'qkv_bias': True, 'mlp_bias': True},
  ),
  'AIMv2, no pooling': (
    'Aimv2Vision',
    'Aimv2VisionModel',
    SIZES | {'use_head': False},
  ),
  'AIMv2, projection': ('Aimv2', 'Aimv2Model', TOWERS | {'projection_dim': 20}),
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
  'BEiT, features': (
    'Beit',
    'BeitModel',
    SIZES | {'use_relative_position_bias': True},
  ),
  'Data2Vec': (
    'Data2VecVision',
    'Data2VecVisionForImageClassification',
    SIZES | {'use_shared_relative_position_bias': True},
  ),
}


# Arrays that the outputs do not depend on: they are not exported, and
# transformers initializes them again.
NOT_EXPORTED = r'mask_token|logit_|^vision_model\.(head|post_layernorm)\.'
UNREAD = {
  'embeddings.mask_token',
  'dinov2.embeddings.mask_token',
  'dinov2_with_registers.embeddings.mask_token',
  'vision_model.post_layernorm.weight',
  'vision_model.post_layernorm.bias',
}
# Models with sums of arrays: both heads, or a token and its position.
MERGED = ('DeiT', 'DeiT, two heads')


def model_of_export(case, model):
  """Returns the class of an exported model; None: there is none."""
  if case == 'AIMv2, projection':
    return None
  name = {
    'CLIP': 'CLIPVisionModelWithProjection',
    'SigLIP': 'SiglipVisionModel',
  }
  return getattr(transformers, name.get(case, type(model).__name__))


def make(case):
  """Returns a model of transformers with random parameters."""
  kind, model, settings = CASES[case]
  model = getattr(transformers, model)(
    getattr(transformers, f'{kind}Config')(**settings)
  )
  return randomized(model)


def randomized(model):
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
  tokens = found.last_hidden_state
  return (
    tokens.mean(1) if 'Aimv2' in type(model).__name__ else tokens[:, 0]
  ).numpy()


def our_outputs(trained, images):
  with jax.default_matmul_precision('highest'):
    return (
      trained.logits(images)
      if trained.model.num_classes
      else trained.features(images)
    )


def check_close(found, expected):
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def write_preprocessor(folder):
  preprocessor = dict(
    size={'height': 32, 'width': 32}, resample=3, image_mean=MEAN, image_std=STD
  )
  preprocessor['do_center_crop'] = False
  (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor))


def random_images():
  images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
  return images.astype(np.float32)


def arrays_in(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


@pytest.mark.parametrize('case', CASES)
def test_outputs_of_every_layout(case, tmp_path):
  """Loads a model; exports it; loads it again in both libraries."""
  model = make(case)
  model.save_pretrained(tmp_path / 'a')
  write_preprocessor(tmp_path / 'a')
  trained = vit_jax.load(str(tmp_path / 'a'))
  images = random_images()
  expected = outputs(model, images)
  check_close(our_outputs(trained, images), expected)

  there = model_of_export(case, model)
  if there is None:
    with pytest.raises(ValueError, match='no equivalent of'):
      formats.export(trained, str(tmp_path / 'b/'))
    return
  formats.export(trained, str(tmp_path / 'b/'))
  back, problems = there.from_pretrained(
    tmp_path / 'b', output_loading_info=True
  )
  assert {type(back).__name__} == {*back.config.architectures}
  assert not problems['unexpected_keys'] and not problems['mismatched_keys']
  assert problems['missing_keys'] <= UNREAD
  check_close(outputs(back.eval(), images), expected)
  check_close(our_outputs(vit_jax.load(str(tmp_path / 'b')), images), expected)
  before, after = arrays_in(tmp_path / 'a'), arrays_in(tmp_path / 'b')
  lost = {x for x in before.keys() - after.keys() if 'text_' not in x}
  assert not after.keys() - before.keys()
  assert all(re.search(NOT_EXPORTED, name) for name in lost), lost
  for name in after if case not in MERGED else ():
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize('normalize', [True, False])
def test_the_loss_of_masked_autoencoders(normalize, tmp_path):
  sizes = {f'decoder_{k}': 2 * x for k, x in SIZES.items() if '_size' in k}
  settings = dict(sizes, patch_size=4, norm_pix_loss=normalize)
  settings['decoder_intermediate_size'] = 4 * 48
  settings |= dict(decoder_num_hidden_layers=2, decoder_num_attention_heads=4)
  config = transformers.ViTMAEConfig(**SIZES | settings, layer_norm_eps=1e-6)
  model = randomized(transformers.ViTMAEForPreTraining(config))
  model.save_pretrained(tmp_path)
  write_preprocessor(tmp_path)
  sizes = {'model.num_heads': 3, 'model.num_layers': 2, 'model.mlp_dim': 36}
  run, params = test_published_mae.started(
    test_published_mae.make_config(
      tmp_path, **sizes, **{'model.hidden_size': 24, 'pp.crop': 32}
    )
  )
  images = random_images()
  noise = np.random.default_rng(2).uniform(size=(2, 64)).astype(np.float32)
  pixels = ((images + 1) / 2 - np.float32(MEAN)) / np.float32(STD)
  pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = model(pixel_values=pixels, noise=torch.from_numpy(noise)).loss
  batch = {'image': images, 'order': np.argsort(noise, axis=1)}
  context = task.Context(key=jax.random.key(0), step=0)
  losses, _, _ = run.loss(params, batch, context)
  np.testing.assert_allclose(losses.mean(), float(expected), rtol=1e-5)


def test_the_hybrid_of_earlier_versions(tmp_path):
  """Builds it from modules of transformers 5, which no longer has it."""
  model = randomized(outside.hf_hybrid())
  for module in model.modules():
    if isinstance(module, torch.nn.GroupNorm):
      module.eps = 1e-5  # as in BiT, and so in the hybrid
      # The variance of the next layer is small, so another epsilon is seen.
      module.weight.data *= 0.05
      module.bias.data *= 0.05
  arrays = {
    re.sub(r'vit\.layers\.', 'vit.encoder.layer.', name): x.numpy().copy()
    for name, x in model.state_dict().items()
  }
  for new, old in (
    *((f'attention.{x[0]}_proj', f'attention.attention.{x}') for x in QKV),
    ('attention.o_proj', 'attention.output.dense'),
    ('mlp.fc1', 'intermediate.dense'),
    ('mlp.fc2', 'output.dense'),
  ):
    arrays = {name.replace(new, old): x for name, x in arrays.items()}
  (tmp_path / 'a').mkdir()
  safetensors.numpy.save_file(arrays, tmp_path / 'a/model.safetensors')
  config = outside.HF_SIZES | dict(
    model_type='vit-hybrid',
    architectures=['ViTHybridForImageClassification'],
    hidden_act='gelu_pytorch_tanh',
    layer_norm_eps=1e-6,
    patch_size=2,
    backbone_config=dict(embedding_size=32, hidden_sizes=[128], depths=[1]),
  )
  (tmp_path / 'a/config.json').write_text(json.dumps(config))
  write_preprocessor(tmp_path / 'a')
  trained, images = vit_jax.load(str(tmp_path / 'a')), random_images()
  expected = outputs(model, images)
  check_close(our_outputs(trained, images), expected)
  formats.export(trained, str(tmp_path / 'b/'))
  after = arrays_in(tmp_path / 'b')
  assert after.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(after[name], array, err_msg=name)
  check_close(our_outputs(vit_jax.load(str(tmp_path / 'b')), images), expected)


@pytest.mark.parametrize(
  'case, architecture',
  [
    ('CLIP', 'vit_base_patch16_clip_quickgelu_224'),
    ('SigLIP', 'vit_base_patch16_224'),
    ('DINOv2, SwiGLU', 'vit_giant_patch14_dinov2'),
    ('DINOv3, four registers', 'vit_base_patch16_dinov3_qkvb'),
    ('MAE', None),
  ],
)
def test_a_new_head(case, architecture, tmp_path):
  """Without a class in transformers, timm loads the export."""
  make(case).save_pretrained(tmp_path / 'a')
  write_preprocessor(tmp_path / 'a')
  trained, images = vit_jax.load(str(tmp_path / 'a')), random_images()
  rng = np.random.default_rng(1)
  head = {'kernel': rng.normal(size=(24, 3)), 'bias': rng.normal(size=3)}
  trained = dataclasses.replace(
    trained,
    model=trained.model.clone(num_classes=3),
    params={
      **trained.params,
      'head': {k: np.float32(x) for k, x in head.items()},
    },
    output='softmax',
  )
  expected = our_outputs(trained, images)
  formats.export(trained, str(tmp_path / 'b/'))
  if architecture is None:
    there = transformers.AutoModelForImageClassification
    found = outputs(there.from_pretrained(tmp_path / 'b').eval(), images)
  else:
    config = json.loads((tmp_path / 'b/config.json').read_text())
    assert config['architecture'] == architecture
    there = outside.timm.create_model(
      f'local-dir:{tmp_path}/b', pretrained=True
    )
    pixels = ((images + 1) / 2 - np.float32(MEAN)) / np.float32(STD)
    found = outside.logits(there, pixels)
  check_close(found, expected)


@pytest.mark.parametrize(
  'resizing', [('crop', 0.88, 'bicubic'), ('squash', 1.0, 'bilinear')]
)
def test_an_exported_preprocessor_prepares_images_as_here(resizing, tmp_path):
  resize, fraction, interpolation = resizing
  resizing = data_settings.Resizing(
    resize, fraction, f'{interpolation}_antialias'
  )
  make('ViT').save_pretrained(tmp_path / 'a')
  write_preprocessor(tmp_path / 'a')
  trained = vit_jax.load(str(tmp_path / 'a'))
  trained = dataclasses.replace(trained, resizing=resizing)
  formats.export(trained, str(tmp_path / 'b/'))
  processor = CLIPImageProcessorPil.from_pretrained(tmp_path / 'b')
  image = Image.open(reference.JPEGS / '3_375x500.jpg').convert('RGB')
  found = processor(images=image, return_tensors='np')['pixel_values'][0]
  pixels = preprocess.for_evaluation(
    np.asarray(image), trained.image_size, resizing=resizing
  )
  expected = ((np.asarray(pixels) + 1) / 2 - MEAN) / STD
  difference = np.abs(found.transpose(1, 2, 0) - expected) * STD * 255
  assert difference.mean() < 0.3 and difference.max() < 2


@pytest.mark.parametrize(
  'problem, prepare',
  [
    ('multi_label_classification', torch.sigmoid),
    ('regression', lambda x: x),
    ('single_label_classification', lambda x: x.softmax(-1)),
  ],
)
def test_predictions_of_every_problem(problem, prepare, tmp_path):
  """The problem of a config decides what the logits of transformers mean."""
  config = transformers.ViTConfig(**SIZES, num_labels=3, problem_type=problem)
  model = randomized(transformers.ViTForImageClassification(config))
  model.save_pretrained(tmp_path)
  write_preprocessor(tmp_path)
  images = random_images()
  logits = torch.from_numpy(outputs(model, images))
  with jax.default_matmul_precision('highest'):
    found = vit_jax.load(str(tmp_path)).predict(images)
  np.testing.assert_allclose(found, prepare(logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', ['ViT', 'DeiT', 'Beit', 'CLIP', 'Bit'])
def test_defaults_of_every_image_processor(kind):
  """A file that has only `size=40` and the name of the class."""
  module = importlib.import_module(
    f'transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}'
  )
  crop = {'crop_size': 32, 'do_center_crop': kind != 'ViT'}
  stored = {'size': 40, **({} if kind == 'ViT' else crop)}
  stored |= {'image_mean': MEAN, 'image_std': STD}
  processor = getattr(module, f'{kind}ImageProcessorPil')(**stored)
  stored['image_processor_type'] = f'{kind}ImageProcessor'
  if kind != 'Beit':  # its default depends on the version
    stored.pop('do_center_crop', None)
  found = origin.read({'model_type': 'dinov3_vit'}, stored)
  image = Image.open(reference.JPEGS / '3_375x500.jpg').convert('RGB')
  expected = processor(images=image, return_tensors='np')['pixel_values'][0]
  pixels = preprocess.for_evaluation(
    np.asarray(image), found.image_size, resizing=found.resizing
  )
  pixels = ((np.asarray(pixels) + 1) / 2 - MEAN) / STD
  difference = np.abs(expected.transpose(1, 2, 0) - pixels) * STD * 255
  assert difference.mean() < 0.3 and difference.max() < 2


def test_an_export_that_is_fine_tuned_in_transformers(tmp_path):
  """transformers saves our key of the old classes; they are not used."""
  make('ViT').save_pretrained(tmp_path / 'a')
  write_preprocessor(tmp_path / 'a')
  formats.export(vit_jax.load(str(tmp_path / 'a')), str(tmp_path / 'b/'))
  model = transformers.ViTForImageClassification.from_pretrained(
    *[tmp_path / 'b'],
    id2label={0: 'x', 1: 'y', 2: 'z'},
    label2id={'x': 0, 'y': 1, 'z': 2},
    problem_type='multi_label_classification',
    ignore_mismatched_sizes=True,
  )
  model = randomized(model)
  model.save_pretrained(tmp_path / 'c')
  write_preprocessor(tmp_path / 'c')
  assert 'vit_jax' in json.loads((tmp_path / 'c/config.json').read_text())
  trained, images = vit_jax.load(str(tmp_path / 'c')), random_images()
  assert (trained.output, trained.class_names) == ('sigmoid', ('x', 'y', 'z'))
  check_close(our_outputs(trained, images), outputs(model, images))
