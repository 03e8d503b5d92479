"""Writes `tests/reference_data/narrow_models`: logits of other libraries.

  python -m tests.narrow_models

This module needs the extra `interop`. Each file has the `config.json` that timm
or transformers writes, the names and shapes of the arrays, and the outputs of a
narrow model. The values of the arrays are those of `placed_values`, so the
tests need neither library nor torch. `manifest.json` has the origin of each
file, and its SHA-256.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import numpy as np
import safetensors.numpy
import safetensors.torch
import timm
import torch
import transformers

from tests import placed_values
from tests import reference
from tests import timm_models

FOLDER = reference.DATA / 'narrow_models'
TOLERANCE = 2e-5
NARROW = dict(depth=2, embed_dim=48, num_heads=3, num_classes=7)
# {file: (architecture, arguments that differ from `NARROW`)}. Together, they
# have every option of the encoder.
TIMM = {
  'clip_quickgelu': ('vit_base_patch16_clip_quickgelu_224', dict(img_size=48)),
  'dinov2_registers': ('vit_small_patch14_reg4_dinov2', dict(img_size=42)),
  'dinov3': ('vit_small_patch16_dinov3', dict(img_size=(48, 32))),
  'rope_mixed': ('vit_small_patch16_rope_mixed_ape_224', dict(img_size=48)),
  'eva02_gated': ('eva02_base_patch14_448', dict(img_size=42)),
  'perception': (
    'vit_pe_core_tiny_patch16_384',
    dict(img_size=64, embed_dim=64, num_heads=4),
  ),
  'beit': ('beit_base_patch16_224', dict(img_size=48)),
  'beit3': ('beit3_base_patch16_224', dict(img_size=32)),
  'relpos_post_norm': ('vit_relpos_base_patch16_rpn_224', dict(img_size=48)),
  'relpos_shared': ('vit_srelpos_small_patch16_224', dict(img_size=32)),
  'deit_distilled': ('deit_tiny_distilled_patch16_224', dict(img_size=32)),
  'siglip_remainder': ('vit_so400m_patch14_siglip_384', dict(img_size=48)),
  'gap': ('vit_base_patch16_gap_224', dict(img_size=32)),
  'dinov2_swiglu': ('vit_giant_patch14_dinov2', dict(img_size=42)),
  'parallel_qk_norm': ('vit_base_patch16_xp_224', dict(img_size=32)),
  'tips': ('vit_base_patch14_reg1_tipsv2', dict(img_size=42)),
}
HF_NARROW = dict(
  hidden_size=48,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=96,
  image_size=32,
  patch_size=16,
)
# {file: (class of the model, class of its config, changes of `HF_NARROW`)}
HUGGING_FACE = {
  'hf_vit': ('ViTForImageClassification', 'ViTConfig', dict(num_labels=7)),
  'hf_dinov3': (
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    dict(num_register_tokens=2),
  ),
  'hf_clip': ('CLIPVisionModel', 'CLIPVisionConfig', dict()),
  'hf_siglip': ('SiglipVisionModel', 'SiglipVisionConfig', dict()),
  'hf_aimv2': ('Aimv2VisionModel', 'Aimv2VisionConfig', dict()),
  'hf_dinov2': (
    'Dinov2WithRegistersForImageClassification',
    'Dinov2WithRegistersConfig',
    dict(num_labels=7),
  ),
}


def of_timm(name):
  """Returns (content of a file, entry of the manifest) for a case of `TIMM`."""
  architecture, changes = TIMM[name]
  settings = NARROW | changes
  model = timm_models.create(architecture, **settings)
  with tempfile.TemporaryDirectory() as folder:
    timm_models.save(model, pathlib.Path(folder), settings)
    config = json.loads(pathlib.Path(folder, 'config.json').read_text())
  images = placed_values.images(config['pretrained_cfg']['input_size'][1:])
  stored = {
    'config': config,
    'arrays': {k: list(x.shape) for k, x in model.state_dict().items()},
    'logits': timm_models.outputs(model, images)['logits'],
  }
  return stored, {
    'made_by': f'timm {timm.__version__}, torch {torch.__version__}',
    'architecture': architecture,
    'settings': settings,
  }


def of_hugging_face(name):
  """Returns the same for a case of `HUGGING_FACE`; without head, 'features'."""
  model_name, config_name, changes = HUGGING_FACE[name]
  settings = HF_NARROW | changes
  config = getattr(transformers, config_name)(**settings)
  make = getattr(transformers, model_name)
  with tempfile.TemporaryDirectory() as folder:
    make(config).save_pretrained(folder)
    path = pathlib.Path(folder, 'model.safetensors')
    shapes = {k: x.shape for k, x in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(
      placed_values.values(shapes), path, {'format': 'pt'}
    )
    model, problems = make.from_pretrained(folder, output_loading_info=True)
    assert not any(problems.values()), problems
    config = json.loads(pathlib.Path(folder, 'config.json').read_text())
  images = placed_values.images((settings['image_size'],) * 2)
  with torch.no_grad():
    found = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  key, values = (
    ('logits', found.logits)
    if 'logits' in found
    else ('features', found.pooler_output)
  )
  stored = {
    'config': config,
    # Images of the model are those of the test, without mean and deviation.
    'preprocessor': {
      'image_mean': [0.5] * 3,
      'image_std': [0.5] * 3,
      'size': dict.fromkeys(('height', 'width'), settings['image_size']),
    },
    'arrays': {k: list(shape) for k, shape in shapes.items()},
    key: values.numpy(),
  }
  return stored, {
    'made_by': f'transformers {transformers.__version__}, '
    f'torch {torch.__version__}',
    'architecture': model_name,
    'settings': settings,
  }


def write(name: str) -> dict:
  """Writes one file and returns its entry of the manifest."""
  stored, entry = (of_timm if name in TIMM else of_hugging_face)(name)
  for key in ('logits', 'features'):
    if key in stored:
      rows = np.asarray(stored[key]).tolist()
      stored[key] = [[float(f'{x:.8g}') for x in row] for row in rows]
  path = FOLDER / f'{name}.json'
  path.write_text(json.dumps(stored) + '\n', encoding='utf-8')
  return entry | {
    'command': 'python -m tests.narrow_models',
    'values': 'tests/placed_values.py; seed: crc32 of each name, 7 for images',
    'tolerance': TOLERANCE,
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
  }


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  manifest = {f'{name}.json': write(name) for name in (*TIMM, *HUGGING_FACE)}
  text = json.dumps(manifest, indent=1, sort_keys=True)
  (FOLDER / 'manifest.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  sys.exit(main())
