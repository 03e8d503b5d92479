"""Trains a ViT from scratch on ImageNet: `configs/augreg_i1k.py:MODEL[,LEVEL]`.

  python -m vit_jax.main --config=configs/augreg_i1k.py:S_16,medium2

MODEL is Ti_16, S_32, S_16, B_32, B_16, L_16 or another ViT of
vit_jax/models/variants.py. LEVEL is the strength of the augmentation: none,
light1, light2, medium1, medium2, strong1 or strong2. Without LEVEL, it is the
one that big_vision uses for this model.

This is the training of AugReg (arXiv 2106.10270, section 3): 300 epochs of
99 % of the training images, 92 897 steps. B and L have dropout and stochastic
depth of 0.1, as in big_vision. We have not trained these models.

Differences from the authors' code (big_vision):
- Evaluation resizes images with bilinear_antialias, not with the method area of
  TensorFlow. Both average the pixels that an output pixel covers.
- Training crops are rounded to uint8 before RandAugment, not truncated.
- Mixup pairs the rows of the whole batch, not those of each device.
"""

from vit_jax import base_config
from vit_jax.augment import augreg_levels
from vit_jax.models import variants

# Levels that big_vision uses for training on ImageNet.
LEVELS = {
  'Ti_16': 'light1',
  'S_32': 'medium1',
  'S_16': 'medium2',
  'B_32': 'medium2',
  'B_16': 'medium2',
  'L_16': 'medium2',
}


def get_config(arg='S_16'):
  model, _, level = arg.partition(',')
  level = level or LEVELS.get(model)
  if not level:
    raise ValueError(
      f'augreg_i1k.py:{arg}: there is no usual level of augmentation for '
      f'{model}. Use augreg_i1k.py:{model},LEVEL, where LEVEL is one of '
      + ', '.join(augreg_levels.LEVELS)
    )
  config = base_config.for_dataset('imagenet2012')
  config.pretrained = 'scratch'
  config.model.name = variants.resolve(f'ViT-{model}')
  rate = 0.1 if model[0] in 'BL' else 0.0
  config.model.update(dict(dropout_rate=rate, drop_path_rate=rate))

  config.pp.update(dict(crop=224, resize='crop', crop_fraction=224 / 256))
  config.pp.interpolation = 'bilinear_antialias'
  config.augment.update(augreg_levels.settings(level))
  config.loss = 'sigmoid'
  config.head_bias = -6.9

  config.batch = 4096
  config.total_steps = 0
  config.total_epochs = 300.0
  config.warmup_steps = 10_000
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  config.weight_decay = 0.1
  config.eval_every = 5000
  config.checkpoint_every = 5000
  return config
