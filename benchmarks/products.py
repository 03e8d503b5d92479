"""Times our dense layers and patch embedding against the layers of Flax.

  python benchmarks/products.py --repeats=9
  python benchmarks/products.py --model=b16 --layers=12 --dtype=bfloat16

`linear.Dense` and `patches.PatchEmbedding` (in `models/layers/`) compute matrix
products. Flax's layers give the same outputs. The benchmark trains a few layers
of a ViT with each combination of layers. The combinations take turns, and the
fastest repeat counts. Then other work on the machine has little effect.
"""

import contextlib
import csv
import time
from unittest import mock

from absl import app
from absl import flags
import flax.linen as nn
import model_steps

from vit_jax.models.layers import linear
from vit_jax.models.layers import patches

_BATCH = flags.DEFINE_integer('batch', 16, 'Images per step.')
_MODEL = flags.DEFINE_string('model', 'ti16', 'Model, short or full name.')
_LAYERS = flags.DEFINE_integer('layers', 4, 'Layers of the model.')
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 224, 'Side of the images.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Dtype of the activations.')
_ACCUM_STEPS = flags.DEFINE_list(
  'accum_steps', ['1', '4'], 'Numbers of micro-batches per step.'
)
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed repeats.')
_STEPS = flags.DEFINE_integer('steps', 1, 'Steps in a repeat.')
_CSV = flags.DEFINE_string('csv', None, 'CSV file for the rows of the table.')


def convolution(hidden_size, patch_size, has_bias, dtype, name, **_):
  """Returns a function that embeds patches with Flax's convolution."""

  def embed(images):
    x = nn.Conv(
      hidden_size,
      (patch_size,) * 2,
      strides=patch_size,
      padding='VALID',
      use_bias=has_bias,
      dtype=dtype,
      name=name,
    )(images)
    return x.reshape(x.shape[0], -1, hidden_size)

  return embed


_FLAX_DENSE = {
  (linear, 'Dense'): nn.Dense,
  (linear, 'DenseGeneral'): nn.DenseGeneral,
}
_FLAX_PATCHES = {(patches, 'PatchEmbedding'): convolution}
_WAYS = {  # layers that are replaced by Flax's
  "Flax's layers": {**_FLAX_DENSE, **_FLAX_PATCHES},
  'dense layers as products': _FLAX_PATCHES,
  'patches as products': _FLAX_DENSE,
  'both': {},
}


def make_step(exchanged, accum_steps):
  """Returns a function that trains a number of steps, with other layers."""
  case = model_steps.Case(
    _MODEL.value,
    'training',
    _BATCH.value,
    _IMAGE_SIZE.value,
    _DTYPE.value,
    {'num_layers': _LAYERS.value},
    accum_steps,
  )
  with contextlib.ExitStack() as stack:
    for (module, name), layer in exchanged.items():
      stack.enter_context(mock.patch.object(module, name, layer))
    run = model_steps.vit_jax(case)
    run(1)  # traces the layers
  return run


def measure(accum_steps):
  """Returns {name of the layers: seconds of a step}."""
  runs = {
    name: make_step(exchanged, accum_steps) for name, exchanged in _WAYS.items()
  }
  shortest = dict.fromkeys(runs, float('inf'))
  for _ in range(_REPEATS.value):
    for name, run in runs.items():
      start = time.perf_counter()
      run(_STEPS.value)
      seconds = (time.perf_counter() - start) / _STEPS.value
      shortest[name] = min(shortest[name], seconds)
  return shortest


def main(_):
  columns = 'layers', 'micro-batches', 'milliseconds', 'times as fast'
  print(f'| {" | ".join(columns)} |\n| --- | ---: | ---: | ---: |')
  rows = [columns]
  for accum_steps in map(int, _ACCUM_STEPS.value):
    shortest = measure(accum_steps)
    base = next(iter(shortest.values()))
    for name, seconds in shortest.items():
      rows.append(
        (name, accum_steps, f'{1e3 * seconds:.1f}', f'{base / seconds:.2f}')
      )
      print(f'| {" | ".join(map(str, rows[-1]))} |', flush=True)
  if _CSV.value:
    with open(_CSV.value, 'w', encoding='utf-8', newline='') as file:
      csv.writer(file).writerows(rows)


if __name__ == '__main__':
  app.run(main)
