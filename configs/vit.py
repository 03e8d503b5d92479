"""Fine-tunes a published model: `configs/vit.py:MODEL,DATASET`.

  python -m vit_jax.main --config=configs/vit.py:b16,cifar10
  python -m vit_jax.main --config=configs/vit.py:ti16,/path/to/photos

MODEL is a name of vit_jax/models/variants.py, or short: b16 for ViT-B_16.
DATASET is a TFDS name or a folder of images. The published weights are looked
for in --config.pretrained_dir.
"""

from vit_jax import base_config


def get_config(arg='b16,cifar10'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'cifar10')
  config.model.name = model
  return config
