"""Writes a dataset as one .npz file, which vit_jax reads without TensorFlow.

  python scripts/make_npz.py cifar10 cifar10.npz
  python scripts/make_npz.py photos photos.npz

The dataset is a folder of images, tar files, or the name of a TFDS dataset. All
images must have one size. They are stored as they are encoded, so a run decodes
them once, when it starts. Use the file as a dataset:

  python -m vit_jax.main --config=configs/cifar10_scratch.py \\
    --config.dataset=cifar10.npz
"""

import argparse
import io

import numpy as np
from PIL import Image

from vit_jax import base_config
from vit_jax.data.given import encoded_images
from vit_jax.data.in_memory import collection
from vit_jax.run import setup


def arrays_of(source, start):
  """Returns {name: array} of a split; `start` is the prefix of the names."""
  rows = list(collection.in_order(source).as_numpy_iterator())
  labels = np.stack([row['label'] for row in rows])
  images = [row['image'] for row in rows]
  if not isinstance(images[0], bytes):
    return {f'{start}image': np.stack(images), f'{start}label': labels}
  sizes = [Image.open(io.BytesIO(image)).size[::-1] for image in images]
  for i, size in enumerate(sizes):
    encoded_images.check_size(size, sizes[0], f'{start}image: image {i}')
  content, offsets = encoded_images.join(images)
  return {
    f'{start}image': content,
    f'{start}image_offsets': offsets,
    f'{start}label': labels,
  }


def main():
  """Reads a dataset and writes the file."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('dataset')
  parser.add_argument('file')
  for name in ('train_split', 'test_split', 'tfds_data_dir'):
    parser.add_argument(f'--{name}', help=f'see config.{name}')
  args = vars(parser.parse_args())
  path, config = args.pop('file'), base_config.get_config()
  config.update({name: x for name, x in args.items() if x is not None})
  data = setup.get_datasets(config)
  found = {'class_names': np.array(data.class_names)}
  for split, source in data.sources.items():
    found |= arrays_of(source, '' if split == 'train' else f'{split}_')
  np.savez(path, **found)
  print(f'{path}: {", ".join(f"{k} {v.shape}" for k, v in found.items())}')


if __name__ == '__main__':
  main()
