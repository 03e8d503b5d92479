"""Fine-tunes Mixer-B/16 on CIFAR-10 at 224 px, from ImageNet-21k weights.

  python -m vit_jax.main --config=configs/mixer_b16_cifar10.py

Expected test accuracy: 96.82 % after 10 000 steps. The authors of the original
code published this metric, for gs://mixer_models/imagenet21k/Mixer-B_16.npz.
"""

from vit_jax import base_config


def get_config():
  config = base_config.for_dataset('cifar10')
  config.model.name = 'Mixer-B_16'
  config.pp.crop = 224
  return config
