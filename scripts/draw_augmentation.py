"""Draws docs/augmentation.jpg: a photograph after several augmentations.

  python -m scripts.draw_augmentation

The photograph is china.jpg of scikit-learn (danielbuechele, CC BY 2.0).
"""

import pathlib

import jax
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from sklearn import datasets

from vit_jax import base_config
from vit_jax.augment import augmentation
from vit_jax.augment import grey_levels

_PATH = pathlib.Path(__file__).parent.parent / 'docs' / 'augmentation.jpg'
_COUNT, _SIDE, _GAP, _TEXT = 8, 88, 4, 18
_BOXES = (0, 0, 427, 427), (380, 167, 640, 427)  # a pagoda, a lake
_ROWS = {  # text: (settings, seed)
  "policy='randaug(2,15)'": (dict(policy='randaug(2,15)'), 5),
  "policy='randaug_fixed(2,15)'": (dict(policy='randaug_fixed(2,15)'), 5),
  "policy='rand-m9-mstd0.5-inc1'": (dict(policy='rand-m9-mstd0.5-inc1'), 4),
  "policy='trivial'": (dict(policy='trivial'), 1),
  "policy='3augment', jitter=0.3": (dict(policy='3augment', jitter=0.3), 2),
  "mixup=0.8, cutmix=1.0, mix_mode='elem', erasing=0.25": (
    dict(mixup=0.8, cutmix=1.0, mix_mode='elem', erasing=0.25),
    6,
  ),
}


def augmented(changes, seed):
  """Returns eight augmented images, uint8 [8, 224, 224, 3]."""
  photograph = Image.fromarray(datasets.load_sample_image('china.jpg'))
  parts = [
    np.asarray(photograph.crop(box).resize((224, 224), Image.LANCZOS))
    for box in _BOXES
  ]
  config = base_config.get_config()
  config.augment.update(changes)
  mixes = 'mixup' in changes
  images = np.stack([parts[mixes and i % 2 == 0] for i in range(_COUNT)])
  augment = jax.jit(augmentation.Settings(**config.augment).make(2))
  batch = {'image': images, 'label': np.arange(_COUNT) % 2}
  found = augment(jax.random.key(seed), batch, 0)['image']
  return np.asarray(grey_levels.from_images(found))


def main():
  step = _SIDE + _TEXT + 6
  size = _COUNT * (_SIDE + _GAP) - _GAP, len(_ROWS) * step
  picture = Image.new('RGB', size, 'white')
  write, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
  for row, (text, (changes, seed)) in enumerate(_ROWS.items()):
    write.text((0, row * step), text, 'black', font)
    for i, image in enumerate(augmented(changes, seed)):
      small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.LANCZOS)
      picture.paste(small, (i * (_SIDE + _GAP), row * step + _TEXT))
  picture.save(_PATH, quality=72, optimize=True)


if __name__ == '__main__':
  main()
