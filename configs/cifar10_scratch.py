"""Trains a ViT from scratch on CIFAR-10 at 32 px.

  python -m vit_jax.main --config=configs/cifar10_scratch.py          # one GPU
  python -m vit_jax.main --config=configs/cifar10_scratch.py:gpu,300  # epochs
  python -m vit_jax.main --config=configs/cifar10_scratch.py:cpu      # a laptop

All images are on the device, see docs/data_on_device.md. Without TensorFlow,
use a file of scripts/make_npz.py: --config.dataset=cifar10.npz

On a GPU: a plain ViT-S with patches of 4 px, strong augmentation and a moving
average of the parameters, for 400 epochs. This setting has not been measured.
docs/gpu.md describes how to measure it.

Expected test accuracy with the argument cpu: 47.8 % after 1500 steps, in 9:45
minutes (our measurement with seed 0 on 2 CPU cores, with
--config.data_on=host).
"""

import re

from vit_jax import base_config

_NUM_TRAIN = 50_000


def _set_gpu(config, epochs):
  config.model.update(
    dict(
      name='ViT-S_16',
      patch_size=4,
      classifier='gap',
      positions='sincos2d',
      drop_path_rate=0.1,
      dtype='bfloat16',
    )
  )
  config.pp.update(dict(crop=32, min_area=1.0))  # no crops but those of `pad`
  config.augment.update(
    dict(
      pad=4,
      policy='rand-m9-mstd0.5-inc1',
      erasing=0.25,
      mixup=0.8,
      cutmix=1.0,
      mix_off=0.1,
    )
  )
  config.label_smoothing = 0.1

  config.batch = 1024
  config.batch_eval = 1000
  config.accum_steps = 1
  config.total_steps = 0
  config.total_epochs = epochs
  config.warmup_steps = 10 * _NUM_TRAIN // config.batch
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  config.weight_decay = 0.05
  config.momentum_dtype = 'float32'
  # The half-life of the average is 1 % of the run.
  half_life = 0.01 * epochs * _NUM_TRAIN / config.batch
  config.ema_decay = round(0.5 ** (1 / half_life), 6)
  config.ema_warmup_power = 0.75
  config.log_every = 100
  config.eval_every = 2000
  config.checkpoint_every = 2000


def get_config(device='gpu'):
  config = base_config.for_dataset('cifar10')
  config.train_split = 'train'
  config.data_on = 'device'
  config.pretrained = 'scratch'
  on_gpu = re.fullmatch(r'gpu(?:,([1-9]\d*))?', device)
  if on_gpu:
    _set_gpu(config, float(on_gpu[1] or 400))
    return config

  config.model.update(dict(name='ViT-Ti_16', patch_size=4, classifier='gap'))
  config.pp.update(dict(crop=32, min_area=0.4))

  config.batch = 512
  config.accum_steps = 1
  config.total_steps = 20_000
  config.warmup_steps = 1000
  config.eval_every = 1000
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  config.weight_decay = 0.1
  config.momentum_dtype = 'float32'
  if device == 'cpu':
    config.model.update(
      dict(hidden_size=128, mlp_dim=256, num_heads=4, num_layers=6)
    )
    config.pp.min_area = 0.6
    config.batch = 64
    config.accum_steps = 2  # faster than 1 here: 32 images fit into the cache
    config.total_steps = 1500
    config.warmup_steps = 100
    config.eval_every = 500
  else:
    raise ValueError(
      f'cifar10_scratch.py:{device}: the argument must be gpu, gpu,EPOCHS or '
      'cpu.'
    )
  return config
