"""Trains on ImageNet with SAM or GSAM: `configs/sam_i1k.py:MODEL[,gsam]`.

  python -m vit_jax.main --config=configs/sam_i1k.py:B_16
  python -m vit_jax.main --config=configs/sam_i1k.py:Mixer-B_16,gsam

MODEL is S_32, S_16, B_32, B_16, Mixer-B_32 or Mixer-B_16. SAM: arXiv
2106.01548; GSAM: arXiv 2203.08065, appendix. Images are only cropped and
flipped. Top-1 accuracy of the second paper for B_16: 74.6 % with AdamW, 79.9 %
with SAM and 81.0 % with GSAM. We have not trained these models. Evaluation
resizes images with bilinear_antialias, not with the method area of TensorFlow.
"""

from vit_jax import base_config

# {model: (rho of SAM, (rho, rho_min, alpha) of GSAM)}
MODELS = {
  'S_32': (0.05, (0.6, 0.0, 0.4)),
  'S_16': (0.1, (0.6, 0.0, 1.0)),
  'B_32': (0.15, (0.6, 0.1, 0.6)),
  'B_16': (0.2, (0.6, 0.2, 0.4)),
  'Mixer-B_32': (0.35, (0.7, 0.2, 0.05)),
  'Mixer-B_16': (0.6, (0.5, 0.2, 0.01)),
}


def get_config(arg='B_16'):
  model, _, method = arg.partition(',')
  if model not in MODELS or method not in ('', 'sam', 'gsam'):
    raise ValueError(
      f'sam_i1k.py:{arg}: the argument must be MODEL, MODEL,sam or MODEL,gsam, '
      f'where MODEL is one of {", ".join(MODELS)}.'
    )
  config = base_config.for_dataset('imagenet2012')
  config.pretrained = 'scratch'
  is_mixer = model.startswith('Mixer')
  config.model.name = model if is_mixer else f'ViT-{model}'
  if not is_mixer:
    config.model.dropout_rate = 0.0
  rho, gsam = MODELS[model]
  config.sam.rho = rho
  if method == 'gsam':
    config.sam.rho, config.sam.rho_min, config.sam.alpha = gsam

  config.pp.update(dict(crop=224, resize='crop', crop_fraction=224 / 256))
  config.pp.interpolation = 'bilinear_antialias'
  config.loss = 'sigmoid'
  config.head_bias = -10.0

  config.batch = 4096
  # Each micro-batch of 32 images has its own perturbation. The published runs
  # perturbed on each of about 128 devices.
  config.accum_steps = 128
  config.total_steps = 0
  config.total_epochs = 300.0
  config.warmup_steps = 10_000
  config.optimizer = 'adamw'
  config.base_lr = 3e-3
  config.decay_type = 'linear'
  config.linear_end = 3e-5
  config.weight_decay = 0.3
  config.eval_every = 5000
  config.checkpoint_every = 5000
  return config
