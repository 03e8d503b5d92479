"""Writes `tests/reference_data/timm`: logits of narrow models of timm.

  python -m tests.timm_fixtures

This module needs the extra `interop`. Each file has the `config.json` that timm
writes, the names and shapes of the arrays, and logits. The values of the arrays
are those of `placed_values`, so the tests need neither timm nor torch.
`manifest.json` has the origin of each file, and its SHA-256.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import timm
import torch

from tests import placed_values
from tests import reference
from tests import timm_models

FOLDER = reference.DATA / 'timm'
TOLERANCE = 2e-5
NARROW = dict(depth=2, embed_dim=48, num_heads=3, num_classes=7)
# {file: (architecture, arguments that differ from `NARROW`)}. Together, they
# have every option of the encoder.
CASES = {
  'clip_quickgelu': ('vit_base_patch16_clip_quickgelu_224', dict(img_size=48)),
  'dinov2_registers': ('vit_small_patch14_reg4_dinov2', dict(img_size=42)),
  'dinov3': ('vit_small_patch16_dinov3', dict(img_size=(48, 32))),
  'rope_mixed': ('vit_small_patch16_rope_mixed_ape_224', dict(img_size=48)),
  'eva02_gated': ('eva02_base_patch14_448', dict(img_size=42)),
  'perception': ('vit_pe_core_tiny_patch16_384', dict(img_size=64)),
  'beit': ('beit_base_patch16_224', dict(img_size=48)),
  'beit3': ('beit3_base_patch16_224', dict(img_size=32)),
  'relpos_post_norm': ('vit_relpos_base_patch16_rpn_224', dict(img_size=48)),
  'deit_distilled': ('deit_tiny_distilled_patch16_224', dict(img_size=32)),
  'siglip_remainder': ('vit_so400m_patch14_siglip_384', dict(img_size=48)),
  'gap': ('vit_base_patch16_gap_224', dict(img_size=32)),
  'dinov2_swiglu': ('vit_giant_patch14_dinov2', dict(img_size=42)),
  'parallel_qk_norm': ('vit_base_patch16_xp_224', dict(img_size=32)),
  'tips': ('vit_base_patch14_reg1_tipsv2', dict(img_size=42)),
}


def write(name: str) -> dict:
  """Writes one file and returns its entry of the manifest."""
  architecture, changes = CASES[name]
  settings = NARROW | changes
  model = timm_models.create(architecture, **settings)
  with tempfile.TemporaryDirectory() as folder:
    timm_models.save(model, pathlib.Path(folder), settings)
    config = json.loads(pathlib.Path(folder, 'config.json').read_text())
  size = config['pretrained_cfg']['input_size'][1:]
  images = placed_values.images(size)
  logits = timm_models.outputs(model, images)['logits']
  stored = {
    'config': config,
    'arrays': {k: list(x.shape) for k, x in model.state_dict().items()},
    'logits': [[float(f'{x:.8g}') for x in row] for row in logits],
  }
  path = FOLDER / f'{name}.json'
  path.write_text(json.dumps(stored) + '\n', encoding='utf-8')
  return {
    'made_by': f'timm {timm.__version__}, torch {torch.__version__}',
    'command': 'python -m tests.timm_fixtures',
    'architecture': architecture,
    'settings': settings,
    'values': 'tests/placed_values.py; seed: crc32 of each name, 7 for images',
    'tolerance': TOLERANCE,
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
  }


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  manifest = {f'{name}.json': write(name) for name in CASES}
  text = json.dumps(manifest, indent=1, sort_keys=True)
  (FOLDER / 'manifest.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  sys.exit(main())
