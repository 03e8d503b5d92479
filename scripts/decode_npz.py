"""Decodes the images of an .npz dataset once, so that runs need not do it.

  python scripts/decode_npz.py cifar10.npz decoded.npz

The result is the same dataset with pixels, which need three times the space.
`--train=640 --test=200` keeps only the first images.
"""

import argparse

import numpy as np

from vit_jax.data.given import encoded_images
from vit_jax.data.image_files import decoding


def main():
  """Reads the encoded images and writes their pixels."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('encoded')
  parser.add_argument('decoded')
  for split in ('train', 'test'):
    parser.add_argument(f'--{split}', type=int, help='number of images to keep')
  args = parser.parse_args()
  with np.load(args.encoded) as file:
    arrays = dict(file)
  for start, count in (('', args.train), ('test_', args.test)):
    offsets = arrays.pop(f'{start}image_offsets')[: count and count + 1]
    arrays[f'{start}image'] = encoded_images.decode(
      arrays[f'{start}image'][: offsets[-1]],
      offsets,
      f'{start}image',
      decoding.resolve(),
    )
    arrays[f'{start}label'] = arrays[f'{start}label'][:count]
  np.savez(args.decoded, **arrays)


if __name__ == '__main__':
  main()
