"""Draws docs/overview.png, the figure of README, from a quickstart run.

  python -m vit_jax.main --config=configs/quickstart.py
  python scripts/draw_overview.py workdirs/quickstart

The figure shows the parts of a Vision Transformer for one test image. The
probabilities are those of the run.
"""

import os
import sys

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import vit_jax
from vit_jax import base_config
from vit_jax.run import setup

INDEX = 9  # of the test image
BLUE, LIGHT, GRAY = '#3366aa', '#eef3fa', '#666666'


def read_image(model):
  """Returns (image [H, W] in [0, 1], class probabilities {name: p})."""
  config = base_config.for_dataset('digits')
  config.pp.crop = model.image_size[0]
  batch = next(iter(setup.get_datasets(config).evaluate('test')))
  image = batch['image'][INDEX : INDEX + 1]
  (classes,) = model.classify(image, top=len(model.class_names))
  return image[0, :, :, 0] / 2 + 0.5, dict(sorted(classes.items()))


def draw(image, classes, patch_size, path):
  """Draws image → patches → Transformer → classes, from left to right."""
  figure = Figure(figsize=(10, 2.5), dpi=150)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, 100), ylim=(0, 25), aspect='equal')
  axes.axis('off')

  def show(pixels, x, y, side):
    extent = (x, x + side, y, y + side)
    axes.imshow(pixels, cmap='gray_r', vmin=0, vmax=1, extent=extent)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GRAY))

  show(image, 2, 3, 17)
  num = len(image) // patch_size
  side, gap = 17 / (num + (num - 1) / 4), 17 / (4 * num + num - 1)
  for row in range(num):
    for column in range(num):
      y, x = row * patch_size, column * patch_size
      show(
        image[y : y + patch_size, x : x + patch_size],
        24 + column * (side + gap),
        3 + (num - 1 - row) * (side + gap),
        side,
      )
  for x, text in (
    (46, 'linear\nembedding,\npositions'),
    (58, 'encoder\nblocks:\nattention,\nMLP'),
    (70, 'mean over\nthe patches,\nlinear head'),
  ):
    axes.add_patch(Rectangle((x, 3), 9, 17, facecolor=LIGHT, edgecolor=BLUE))
    axes.text(x + 4.5, 11.5, text, ha='center', va='center', size=8)
  for x, y, text in (
    (10.5, 22, 'image'),
    (32.5, 22, f'{num * num} patches'),
    (62.5, 22, 'Vision Transformer'),
    (90, 22, 'class probabilities'),
  ):
    axes.text(x, y, text, ha='center', va='center', color=GRAY, size=10)
  for x in (19.5, 41.6, 55.3, 67.3, 79.3):
    axes.annotate(
      '', (x + 2.6, 11.5), (x, 11.5), arrowprops=dict(arrowstyle='->')
    )

  bars = figure.add_axes((0.845, 0.12, 0.13, 0.68))
  bars.barh(list(classes), list(classes.values()), color=BLUE)
  bars.invert_yaxis()
  bars.set(xlim=(0, 1), xticks=[])
  bars.tick_params(labelsize=8, length=0)
  bars.spines[['top', 'right', 'bottom']].set_visible(False)
  figure.savefig(path)


def main(workdir, path):
  model = vit_jax.load(workdir)
  image, classes = read_image(model)
  draw(image, classes, model.model.patch_size, path)


if __name__ == '__main__':
  main(
    sys.argv[1], os.path.join(os.path.dirname(__file__), '../docs/overview.png')
  )
