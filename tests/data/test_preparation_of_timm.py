"""Images are prepared as timm prepares them, with Pillow, in evaluation."""

import math

import numpy as np
from PIL import Image
import pytest

from vit_jax.data import data_settings
from vit_jax.data import preprocess

FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


def with_pillow(pixels, size, resizing):
  """Resizes and crops as timm's `transforms_imagenet_eval`: [*size, 3]."""
  image = Image.fromarray(pixels)
  wide = [math.floor(side / resizing.crop_fraction) for side in size]
  if resizing.resize == 'crop':  # wide is (height, width); Pillow's is (w, h)
    scale = max(wide[0] / image.height, wide[1] / image.width)
    # torchvision truncates; timm rounds for other sizes than squares.
    whole = math.trunc if size[0] == size[1] else round
    wide = [
      max(least, whole(side * scale))
      for least, side in zip(wide, (image.height, image.width), strict=True)
    ]
  kind = FILTERS[resizing.interpolation.removesuffix('_antialias')]
  image = np.asarray(image.resize(wide[::-1], kind))
  top, left = (
    round((large - small) / 2)
    for large, small in zip(image.shape, size, strict=False)
  )
  return image[top : top + size[0], left : left + size[1]].astype(np.float32)


def prepared(pixels, size, resizing):
  """Returns grey levels in 0…255."""
  image = preprocess.for_evaluation(pixels, size, resizing=resizing)
  return np.asarray(image) * 127.5 + 127.5


def photo(height, width):
  """Returns an image with edges and noise, [height, width, 3]."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:height, :width]
  waves = 90 * np.sin(x / 11) * np.cos(y / 7) + 128
  edges = 60 * ((x // 23 + y // 17) % 2)
  noise = rng.normal(0, 20, (height, width, 3))
  image = (waves + edges)[..., None] + noise
  return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
  'shape, size',
  [((301, 453), (112, 112)), ((301, 453), (112, 96)), ((90, 61), (112, 96))],
)
@pytest.mark.parametrize(
  'resize, fraction, interpolation',
  [
    ('crop', 0.875, 'bicubic'),
    ('crop', 0.95, 'bilinear'),
    ('crop', 1.0, 'bicubic'),
    ('squash', 1.0, 'bicubic'),
    ('squash', 0.9, 'lanczos'),
  ],
)
def test_pixels_are_those_of_pillow(
  resize, fraction, interpolation, shape, size
):
  resizing = data_settings.Resizing(
    resize, fraction, f'{interpolation}_antialias'
  )
  pixels = photo(*shape)
  found = prepared(pixels, size, resizing)
  difference = np.abs(found - with_pillow(pixels, size, resizing))
  # In grey levels. Pillow rounds its weights and the result of each axis.
  assert difference.mean() < 0.3
  assert difference.max() <= 10


def test_without_antialiasing_images_differ():
  """The original code's resizing is another one: it must not be mixed up."""
  pixels, size = photo(301, 453), (64, 64)
  smooth = data_settings.Resizing('squash', 1.0, 'bilinear_antialias')
  original = prepared(pixels, size, data_settings.DEFAULT_RESIZING)
  assert np.abs(original - with_pillow(pixels, size, smooth)).mean() > 3
