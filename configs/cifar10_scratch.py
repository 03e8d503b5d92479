"""Trains a ViT from scratch on CIFAR-10 at 32 px.

  python -m vit_jax.main --config=configs/cifar10_scratch.py       # one GPU
  python -m vit_jax.main --config=configs/cifar10_scratch.py:cpu   # a laptop

All images are on the device, see docs/data_on_device.md. Without TensorFlow,
use a file of scripts/make_npz.py: --config.dataset=cifar10.npz

Expected test accuracy with the argument cpu: 47.8 % after 1500 steps, in 9:45
minutes (our measurement with seed 0 on 2 CPU cores, with
--config.data_on=host). The GPU setting has not been measured.
"""

from vit_jax import base_config

# 300,000 and 900,000 training images
_CPU_STEPS = {'cpu': 4680, 'cpu30': 14_060}


def get_config(device='gpu'):
  config = base_config.for_dataset('cifar10')
  config.train_split = 'train'
  config.data_on = 'device'
  config.pretrained = 'scratch'

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
  if device in _CPU_STEPS:
    _set_for_cpus(config, _CPU_STEPS[device])
  elif device != 'gpu':
    raise ValueError(
      f'cifar10_scratch.py:{device}: the argument must be gpu, cpu or cpu30.'
    )
  return config


def _set_for_cpus(config, steps):
  """Sets a small hybrid, the optimizer Muon and weak augmentation."""
  config.model.update(
    dict(hidden_size=128, mlp_dim=256, num_heads=4, num_layers=6)
  )
  # The root of a ResNet makes the 8 x 8 patches.
  config.model.update(dict(stem_units=(), stem_width=64, patch_size=1))
  config.model.update(dict(rotary='axial', qk_norm=True, dropout_rate=0.0))
  config.pp.min_area = 1.0
  config.augment.pad = 2
  config.label_smoothing = 0.1
  config.batch = 64
  config.total_steps = steps
  config.warmup_steps = steps // 20
  config.eval_every = steps // 3
  config.optimizer = 'muon'
  config.base_lr = 0.01
  config.muon_rms = 0.0
  config.weight_decay = 0.05
  config.grad_norm_clip = 0.0
