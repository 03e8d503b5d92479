"""Fine-tunes ViT-B/16 on CIFAR-10 at 384 px, from ImageNet-21k weights.

  python -m vit_jax.main --config=configs/b16_cifar10.py

Expected test accuracy: 99.02 % after 10 000 steps, and 98.59 % with
--config.total_steps=500 --config.warmup_steps=50. The authors of the original
code published these metrics, for gs://vit_models/imagenet21k/ViT-B_16.npz.
"""

from vit_jax import base_config


def get_config():
  config = base_config.for_dataset('cifar10')
  config.model.name = 'ViT-B_16'
  config.model.dropout_rate = 0.0
  config.base_lr = 0.01
  return config
