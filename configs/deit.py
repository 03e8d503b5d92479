"""Trains a ViT from scratch on ImageNet as DeiT: `configs/deit.py:MODEL`.

  python -m vit_jax.main --config=configs/deit.py:s16

MODEL is ti16, s16 or b16. This is the training of DeiT (arXiv 2012.12877)
for 300 epochs at 224 px, without distillation. Top-1 accuracy of the
paper: ti16 72.2, s16 79.9, b16 81.8 %. We have not trained these models.

Differences and open points:
- vit_jax cannot train a distillation token. With it, and a RegNetY-16GF as the
  teacher, the paper reports 74.5, 81.2 and 83.4 %. Published distilled models
  can be loaded.
- We have no source for the area and the interpolation of training crops, for
  the coefficients of AdamW and for clipping of gradients. The crops are those
  of configs/deit3.py, the coefficients are the defaults, and gradients are not
  clipped.
- The authors also average the parameters (config.ema_decay=0.99996). We have
  not verified which of the two sets the reported numbers are from, so there is
  no average here.
- RandAugment differs from timm's in details, see docs/augmentation.md.
"""

from vit_jax import base_config

MODELS = ('ti16', 's16', 'b16')
_STEPS_PER_EPOCH = 1_281_167 // 1024


def get_config(model='s16'):
  if model not in MODELS:
    raise ValueError(
      f'deit.py:{model}: the argument must be one of {", ".join(MODELS)}.'
    )
  config = base_config.for_dataset('imagenet2012')
  config.train_split = 'train'
  config.pretrained = 'scratch'
  config.model.name = model
  config.model.update(
    dict(dropout_rate=0.0, drop_path_rate=0.1, gelu='exact', norm_epsilon=1e-6)
  )

  config.pp.update(dict(crop=224, min_area=0.08))
  config.pp.update(dict(resize='crop', crop_fraction=224 / 256))
  config.pp.interpolation = 'bicubic_antialias'
  config.pp.train_interpolation = 'bicubic_antialias'
  config.repeats = 3
  config.augment.update(
    dict(policy='rand-m9-mstd0.5-inc1', erasing=0.25, mixup=0.8, cutmix=1.0)
  )
  config.label_smoothing = 0.1

  config.batch = 1024
  config.total_steps = 0
  config.total_epochs = 300.0
  config.warmup_steps = 0
  config.warmup_epochs = 5.0
  config.warmup_start = 1e-6
  config.optimizer = 'adamw'
  config.base_lr = 1e-3  # 5e-4 · batch / 512
  config.cosine_end = 1e-5
  config.weight_decay = 0.05
  config.grad_norm_clip = 0.0
  config.momentum_dtype = 'float32'
  config.eval_every = 10 * _STEPS_PER_EPOCH
  config.checkpoint_every = 10 * _STEPS_PER_EPOCH
  return config
