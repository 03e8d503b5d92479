"""Trains a plain ViT-S/16 from scratch on ImageNet (arXiv 2205.01580).

  python -m vit_jax.main --config=configs/plain_s16_i1k.py         # 90 epochs
  python -m vit_jax.main --config=configs/plain_s16_i1k.py:300

Top-1 accuracy of the paper on the validation images, for 90, 150 and 300
epochs: 76.7, 78.6 and 79.8 %. We have not trained these models. Evaluation
resizes the smaller side to 256 px, and crops the center. The head is one linear
layer, with which the paper reports the same accuracy as with a hidden layer.

The other differences from the authors' code are those of configs/augreg_i1k.py.
"""

from vit_jax import base_config
from vit_jax.augment import augreg_levels


def get_config(epochs='90'):
  if epochs not in ('90', '150', '300'):
    raise ValueError(
      f'plain_s16_i1k.py:{epochs}: the argument must be 90, 150 or 300.'
    )
  config = base_config.for_dataset('imagenet2012')
  config.pretrained = 'scratch'
  config.model.update(
    dict(name='ViT-S_16', classifier='gap', positions='sincos2d')
  )

  config.pp.update(dict(crop=224, resize='crop', crop_fraction=224 / 256))
  config.pp.interpolation = 'bilinear_antialias'
  config.augment.update(augreg_levels.settings('light2'))

  config.batch = 1024
  config.total_steps = 0
  config.total_epochs = float(epochs)
  config.warmup_steps = 10_000
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  # The paper's 1e-4 is not multiplied by the learning rate; this value is.
  config.weight_decay = 0.1
  config.eval_every = 2500
  config.checkpoint_every = 2500
  return config
