"""Trains a ViT from scratch on CIFAR-10 at 32 px.

  python -m vit_jax.main --config=configs/cifar10_scratch.py          # one GPU
  python -m vit_jax.main --config=configs/cifar10_scratch.py:gpu,300  # epochs
  python -m vit_jax.main --config=configs/cifar10_scratch.py:cpu      # a laptop
  python -m vit_jax.main --config=configs/cifar10_scratch.py:cpu30    # longer

All images are on the device, see docs/data_on_device.md. Without TensorFlow,
use a file of scripts/make_npz.py: --config.dataset=cifar10.npz

On a GPU: a plain ViT-S with patches of 4 px, strong augmentation and a moving
average of the parameters, for 400 epochs. This setting has not been measured.
docs/gpu.md describes how to measure it.

On a CPU: a small hybrid, whose patches come from the root of a ResNet, trained
by Muon with 300,000 images. cpu30 has 900,000 images.

Expected test accuracy: 81.3 % with the argument cpu (the mean of three seeds,
in 37 to 57 minutes on one core of a busy machine), 86.0 % with cpu30 (one seed,
in 150 minutes).
"""

import re

from vit_jax import base_config

# 300,000 and 900,000 training images
_CPU_STEPS = {'cpu': 4680, 'cpu30': 14_060}
_NUM_TRAIN = 50_000


def get_config(device='gpu'):
  on_gpu = re.fullmatch(r'gpu(?:,([1-9]\d*))?', device)
  if not on_gpu and device not in _CPU_STEPS:
    raise ValueError(
      f'cifar10_scratch.py:{device}: the argument must be gpu, gpu,EPOCHS, cpu '
      'or cpu30.'
    )
  config = base_config.for_dataset('cifar10')
  config.train_split = 'train'
  config.data_on = 'device'
  config.pretrained = 'scratch'
  config.model.update(dict(name='ViT-Ti_16', patch_size=4, classifier='gap'))
  config.pp.update(dict(crop=32, min_area=1.0))  # no crops but those of `pad`
  config.label_smoothing = 0.1
  config.accum_steps = 1
  config.momentum_dtype = 'float32'
  if on_gpu:
    _set_for_gpus(config, float(on_gpu[1] or 400))
  else:
    _set_for_cpus(config, _CPU_STEPS[device])
  return config


def _set_for_gpus(config, epochs):
  """Sets AdamW, strong augmentation and a moving average."""
  config.model.update(
    dict(
      name='ViT-S_16',
      positions='sincos2d',
      drop_path_rate=0.1,
      dtype='bfloat16',
    )
  )
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
  config.batch = 1024
  config.batch_eval = 1000
  config.total_steps = 0
  config.total_epochs = epochs
  config.warmup_steps = 0
  config.warmup_epochs = 10.0
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  config.weight_decay = 0.05
  # The half-life of the average is 1 % of the run.
  half_life = 0.01 * epochs * _NUM_TRAIN / config.batch
  config.ema_decay = round(0.5 ** (1 / half_life), 6)
  config.ema_warmup_power = 0.75
  config.log_every = 100
  config.eval_every = 2000
  config.checkpoint_every = 2000


def _set_for_cpus(config, steps):
  """Sets a small hybrid, the optimizer Muon and weak augmentation."""
  config.model.update(
    dict(hidden_size=128, mlp_dim=256, num_heads=4, num_layers=6)
  )
  # The root of a ResNet makes the 8 x 8 patches.
  config.model.update(dict(stem_units=(), stem_width=64, patch_size=1))
  config.model.update(dict(rotary='axial', qk_norm=True, dropout_rate=0.0))
  config.augment.pad = 2
  config.batch = 64
  config.total_steps = steps
  config.warmup_steps = steps // 20
  config.eval_every = steps // 3
  config.optimizer = 'muon'
  config.base_lr = 0.01
  config.muon_rms = 0.0
  config.weight_decay = 0.05
  config.grad_norm_clip = 0.0
