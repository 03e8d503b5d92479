"""Times training steps and forward passes of models, without TensorFlow.

  python benchmarks/step_time.py --models=ti16,s16 --batches=8,32 \
      --dtypes=float32,bfloat16 --settings=,scan=True,remat=full --csv=out.csv

Each combination is compiled, warmed up and repeated. The table contains the
median of the repeats and their interquartile range. FLOPs are the compiler's
count for the model with default settings. The peak is the speed of large matrix
products with this dtype, on this device and in this run. After a batch that
needs too much memory, larger ones are skipped.

`--libraries=vit_jax,flax,timm` also times a plain ViT of Flax's own layers, and
timm, compiled by PyTorch. On a GPU, timm needs the variable
XLA_PYTHON_CLIENT_PREALLOCATE=false, so that JAX leaves it memory. Compare only
rows of one run: other work on the machine changes all times.
"""

import csv
import itertools
import re
import statistics
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import model_steps

from vit_jax import base_config
from vit_jax import models
from vit_jax.cost import flops
from vit_jax.models import variants
from vit_jax.run import setup
from vit_jax.tasks import classification

_MODELS = flags.DEFINE_list('models', ['ti16'], 'Model names, short or full.')
_BATCHES = flags.DEFINE_list('batches', ['16'], 'Images per step.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32'], 'Dtypes of the activations.')
_MODES = flags.DEFINE_list(
  'modes', ['training', 'inference'], 'One or both of the defaults.'
)
_SETTINGS = flags.DEFINE_list(
  'settings',
  [''],
  'Model settings, one list item per row. Use + between the settings of a row: '
  'scan=True+remat=full. An empty item stands for the defaults.',
)
_ACCUM_STEPS = flags.DEFINE_integer(
  'accum_steps', 1, 'Number of micro-batches per step.'
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', 224, 'Height and width of the images in pixels.'
)
_STEPS = flags.DEFINE_integer(
  'steps', 1, 'Steps in a repeat, which waits only for the last one.'
)
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Timed repeats.')
_LIBRARIES = flags.DEFINE_list(
  'libraries', ['vit_jax'], ', '.join(model_steps.MAKERS)
)
_CSV = flags.DEFINE_string('csv', None, 'CSV file for the rows of the table.')

OUT_OF_MEMORY = 'out of memory'


def seconds_of(step, repeats):
  """Returns the seconds of `repeats` calls, after two warm-up calls."""
  taken = []
  for _ in range(repeats + 2):
    start = time.perf_counter()
    step()
    taken.append(time.perf_counter() - start)
  return taken[2:]


def peak(dtype):
  """Returns the FLOP/s of large matrix products on one device.

  The values are random: products of constants need less power, and run faster.
  """
  n, count = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 10)
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (n, n), dtype) for key in keys)
  b = b / n**0.5  # so the product has the variance of a

  @jax.jit
  def products(a, b):
    return jax.lax.fori_loop(0, count, lambda _, a: a @ b, a)

  taken = seconds_of(lambda: products(a, b).block_until_ready(), 5)
  return 2 * n**3 * count / min(taken)


def parse(settings):
  """Parses 'scan=True' to {'scan': True}, with the types of `config.model`."""
  parsed = {}
  for setting in filter(None, settings.split('+')):
    name, _, value = setting.partition('=')
    config = base_config.get_config()
    config.unlock()
    if name not in config.model:
      raise app.UsageError(
        f'--settings={setting}: config.model.{name} does not exist. Use a '
        'setting of config.model in vit_jax/base_config.py.'
      )
    kind = config.model.get_type(name)
    parsed[name] = value == 'True' if kind is bool else kind(value)
  return parsed


def flops_of(name, image_size):
  """Returns the FLOPs per image: {'inference': …, 'training': …}."""
  model = models.get_model(name, num_classes=1000)
  params = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)), train=False
    )
  )['params']
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  forward, both = flops.count(
    classification.of_model(model),
    params,
    {'image': image, 'label': label},
    setup.fresh_context(),
  )
  return {'inference': forward, 'training': both}


def make_step(name, batch, dtype, mode, settings, library='vit_jax'):
  """Returns (function that runs `--steps` steps and waits, seconds of setup).

  The setup includes compilation and the first step.
  """
  start = time.perf_counter()
  case = model_steps.Case(
    name, mode, batch, _IMAGE_SIZE.value, dtype, settings, _ACCUM_STEPS.value
  )
  run = model_steps.MAKERS[library](case)
  run(1)
  return lambda: run(_STEPS.value), time.perf_counter() - start


def measure(library, name, mode, batch, dtype, settings, peak):
  """Returns the measured columns of a row; peak in FLOP/s of one device."""
  try:
    step, to_first = make_step(
      name, batch, dtype, mode, parse(settings), library
    )
    taken = seconds_of(step, _REPEATS.value)
  except Exception as error:
    if not re.search('RESOURCE_EXHAUSTED|out of memory', str(error)):
      raise
    return dict(milliseconds=OUT_OF_MEMORY)
  low, median, high = (
    x / _STEPS.value for x in statistics.quantiles(taken, n=4)
  )
  rate = flops_of(name, _IMAGE_SIZE.value)[mode] * batch / median
  return dict(
    milliseconds=f'{1e3 * median:.1f}',
    middle_half=f'{1e3 * low:.1f}–{1e3 * high:.1f}',
    images_per_second=f'{batch / median:.1f}',
    tflops_per_second=f'{rate / 1e12:.3f}',
    peak_tflops_per_second=f'{peak / 1e12:.3f}',
    fraction_of_peak=f'{rate / peak / jax.device_count():.3f}',
    seconds_to_first=f'{to_first:.1f}',
    device=jax.devices()[0].device_kind,
  )


def rows():
  """Measures each combination; yields its row as a dict."""
  peaks = {dtype: peak(dtype) for dtype in _DTYPES.value}
  for library, name, mode, dtype, settings in itertools.product(
    _LIBRARIES.value,
    _MODELS.value,
    _MODES.value,
    _DTYPES.value,
    _SETTINGS.value,
  ):
    for batch in sorted(map(int, _BATCHES.value)):
      row = dict(
        library=library,
        model=variants.resolve(name),
        mode=mode,
        image_size=_IMAGE_SIZE.value,
        batch=batch,
        dtype=dtype,
        settings=settings,
        **measure(library, name, mode, batch, dtype, settings, peaks[dtype]),
      )
      yield row
      jax.clear_caches()
      if row['milliseconds'] == OUT_OF_MEMORY:
        break  # so are larger batches


def main(_):
  columns = (
    'library',
    'model',
    'mode',
    'image_size',
    'batch',
    'dtype',
    'settings',
    'milliseconds',
    'middle_half',
    'images_per_second',
    'tflops_per_second',
    'peak_tflops_per_second',
    'fraction_of_peak',
    'seconds_to_first',
    'device',
  )
  print('| ' + ' | '.join(columns) + ' |\n|' + ' --- |' * len(columns))
  measured = []
  for row in rows():
    measured.append(row)
    print(
      '| ' + ' | '.join(str(row.get(c, '')) for c in columns) + ' |', flush=True
    )
    if _CSV.value:
      with open(_CSV.value, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(measured)


if __name__ == '__main__':
  app.run(main)
