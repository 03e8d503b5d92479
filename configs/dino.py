"""Pre-trains without labels: self-distillation (DINO, arXiv 2104.14294).

  python -m vit_jax.main --config=configs/dino.py:s16,/path/to/photos

MODEL is a name in vit_jax/models/variants.py, or a short name. DATASET is a
folder of images (at any depth; classes are not needed) or a TFDS name. Then
evaluate or fine-tune the run on labelled images:

  python -m vit_jax.main --config=configs/vit.py:s16,own --config.pretrained=RUN

The settings are those of section 3.2 of the paper, for batch 1024 and 100
epochs of ImageNet. For another batch, change the rate in proportion: 5e-4 ·
batch / 256. After 100 epochs, the authors report 69.3 % (kNN) and 74.0 %
(linear classifier) for S/16.
"""

from vit_jax import base_config


def get_config(arg='s16,imagenet2012'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'imagenet2012')
  base_config.set_model(config, model)
  config.task = 'dino'
  config.labels = 'none'
  config.pretrained = 'scratch'
  config.model.update(
    dict(positions='sincos2d', dropout_rate=0.0, drop_path_rate=0.1)
  )

  config.pp.update(
    dict(crop=224, min_area=0.4, train_interpolation='bicubic_antialias')
  )
  config.batch = 1024
  config.accum_steps = 1
  config.total_steps = 0
  config.total_epochs = 100.0
  config.warmup_steps = 0
  config.warmup_epochs = 10.0
  config.eval_every = 5000
  config.dino.frozen_epochs = 1.0
  config.optimizer = 'adamw'
  config.base_lr = 2e-3
  config.cosine_end = 1e-6
  config.weight_decay = 0.04
  config.weight_decay_end = 0.4
  config.grad_norm_clip = 0.0
  config.array_norm_clip = 3.0
  config.momentum_dtype = 'float32'
  return config
