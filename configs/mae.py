"""Pre-trains without labels: a masked autoencoder (MAE, arXiv 2111.06377).

  python -m vit_jax.main --config=configs/mae.py:s16,/path/to/photos

MODEL is a name in vit_jax/models/variants.py, or a short name. DATASET is a
folder of images (at any depth; classes are not needed) or a TFDS name. Then
fine-tune the run on labelled images:

  python -m vit_jax.main --config=configs/vit.py:s16,own --config.pretrained=RUN

The settings are those of table 8 of the paper: batch 4096, 800 epochs. For
another batch, change the rate in proportion: 1.5e-4 · batch / 256. After 1600
epochs on ImageNet and fine-tuning, the authors report 83.6 % for B/16.
"""

from vit_jax import base_config


def get_config(arg='b16,imagenet2012'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'imagenet2012')
  base_config.set_model(config, model)
  config.task = 'mae'
  config.labels = 'none'
  config.pretrained = 'scratch'
  config.model.update(dict(positions='sincos2d', dropout_rate=0.0))

  config.pp.update(
    dict(crop=224, min_area=0.2, train_interpolation='bicubic_antialias')
  )
  config.batch = 4096
  config.accum_steps = 1
  config.total_steps = 0
  config.total_epochs = 800.0
  config.warmup_steps = 0
  config.warmup_epochs = 40.0
  config.eval_every = 5000
  config.optimizer = 'adamw'
  config.base_lr = 2.4e-3
  config.adam_b2 = 0.95
  config.weight_decay = 0.05
  config.grad_norm_clip = 0.0
  config.momentum_dtype = 'float32'
  return config
