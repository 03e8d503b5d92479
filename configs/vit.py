"""Fine-tunes a published model: `configs/vit.py:MODEL,DATASET`.

  python -m vit_jax.main --config=configs/vit.py:b16,cifar10
  python -m vit_jax.main --config=configs/vit.py:ti16,/path/to/photos
  python -m vit_jax.main --config=configs/vit.py:hf://facebook/dinov2-small

MODEL is a name in vit_jax/models/variants.py, or a short name: b16 for
ViT-B_16, r50+b16 for R50+ViT-B_16. Or it is a path or a URL of weights, also of
timm and Hugging Face. Then the architecture, the image size and the resizing
are those of the weights.
DATASET is a TFDS name or a folder of images.

The published weights of the model are downloaded. For other weights, use
--config.pretrained with a path, a URL or a name such as sam/ViT-B_16; see
docs/weights.md. Mixers use images of 224 px, because their published weights
work only at this size. Other models use 384 px.

Expected test accuracy: docs/results.md lists the accuracies for cifar10,
cifar100 and imagenet2012 that the authors of the original code published.
"""

from vit_jax import base_config
from vit_jax.models import variants


def get_config(arg='b16,cifar10'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'cifar10')
  base_config.set_model(config, model)
  if config.model.name == 'weights':
    return config
  name = variants.resolve(model)
  if name.startswith('Mixer'):
    config.pp.crop = 224
  elif not name.startswith('BiT'):
    config.model.dropout_rate = 0.0
  if (name, config.dataset) == ('ViT-B_16', 'cifar10'):
    config.base_lr = 0.01
  return config
