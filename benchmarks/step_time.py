"""Times training steps and forward passes of models, without TensorFlow.

  python benchmarks/step_time.py --models=ti16,s16 --batches=8,32 \
      --dtypes=float32,bfloat16 --settings=,scan=True,remat=full --csv=out.csv

Each combination is compiled, warmed up and repeated. The table contains the
median of the repeats and their interquartile range. FLOPs are the compiler's
count for the model with default settings. The peak is the speed of large matrix
products with this dtype, on this device and in this run.
`--libraries=vit_jax,timm` also times timm, compiled by PyTorch, if both are
installed. Compare only rows of one run: other work on the machine changes all
times.
"""

import csv
import itertools
import statistics
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import base_config
from vit_jax import models
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.cost import flops
from vit_jax.models import variants
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
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
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Timed repeats.')
_LIBRARIES = flags.DEFINE_list('libraries', ['vit_jax'], 'vit_jax, timm.')
_CSV = flags.DEFINE_string('csv', None, 'CSV file for the rows of the table.')

_TIMM = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge'}


def seconds_of(step, repeats):
  """Returns the seconds of `repeats` calls, after two warm-up calls."""
  taken = []
  for _ in range(repeats + 2):
    start = time.perf_counter()
    step()
    taken.append(time.perf_counter() - start)
  return taken[2:]


def peak(dtype):
  """Returns the FLOP/s of large matrix products on one device."""
  n = 2048 if jax.default_backend() == 'cpu' else 8192
  a = jnp.ones((n, n), dtype)
  product = jax.jit(jnp.matmul)
  taken = seconds_of(lambda: product(a, a).block_until_ready(), 5)
  return 2 * n**3 / min(taken)


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


def make_step(name, batch, dtype, mode, settings):
  """Returns (function that runs one step and waits, seconds of setup).

  The setup includes compilation and the first step.
  """
  start = time.perf_counter()
  mesh = sharding.make_mesh()
  model = models.get_model(name, num_classes=1000, dtype=dtype, **settings)
  size = (_IMAGE_SIZE.value,) * 2
  tx = optax.sgd(1e-3, momentum=0.9, accumulator_dtype='bfloat16')
  task = classification.of_model(model)
  rng = np.random.default_rng(0)
  data = sharding.put_batch(
    {
      'image': rng.uniform(-1, 1, (batch, *size, 3)).astype(np.float32),
      'label': rng.integers(1000, size=batch).astype(np.int32),
    },
    mesh,
  )
  state = train_state.make_init_fn(task, tx, data, mesh)(jax.random.key(0))
  if mode == 'inference':
    forward = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))

    def step():
      forward(state.params, data['image']).block_until_ready()

  else:
    update = train_step.make_update_fn(
      task,
      tx,
      lambda _: 1e-3,
      mesh,
      keys=numerics.run_keys(1),
      accum_steps=_ACCUM_STEPS.value,
    )

    def step():
      nonlocal state
      state, metrics = update(state, data, None)
      jax.block_until_ready(metrics)

  step()
  return step, time.perf_counter() - start


def make_timm_step(name, batch, dtype, mode, settings):
  """Does the same as `make_step` for timm's model, compiled by PyTorch."""
  import timm
  import torch

  if settings:
    raise app.UsageError(
      f'--settings={settings} cannot be used with --libraries=timm: they are '
      'settings of vit_jax models. Time timm in a run without --settings.'
    )
  start = time.perf_counter()
  size, patch = variants.resolve(name).removeprefix('ViT-').split('_')
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = timm.create_model(
    f'vit_{_TIMM[size]}_patch{patch}_{_IMAGE_SIZE.value}',
    pretrained=False,
    num_classes=1000,
    img_size=_IMAGE_SIZE.value,
  ).to(device)
  compiled = torch.compile(model)
  images = (
    torch.rand(batch, 3, _IMAGE_SIZE.value, _IMAGE_SIZE.value, device=device)
    * 2
    - 1
  )
  labels = torch.randint(1000, (batch,), device=device)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
  autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')

  def forward():
    with autocast:
      return compiled(images)

  def infer():
    with torch.inference_mode():
      forward()

  def train():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(forward().float(), labels).backward()
    optimizer.step()

  def step():
    (infer if mode == 'inference' else train)()
    if device == 'cuda':
      torch.cuda.synchronize()

  model.train(mode == 'training')
  step()
  return step, time.perf_counter() - start


def rows():
  """Measures each combination; yields its row as a dict."""
  peaks = {dtype: peak(dtype) for dtype in _DTYPES.value}
  device = jax.devices()[0]
  for library, name, mode, batch, dtype, settings in itertools.product(
    _LIBRARIES.value,
    _MODELS.value,
    _MODES.value,
    map(int, _BATCHES.value),
    _DTYPES.value,
    _SETTINGS.value,
  ):
    make = {'vit_jax': make_step, 'timm': make_timm_step}[library]
    row = dict(
      library=library,
      model=variants.resolve(name),
      mode=mode,
      image_size=_IMAGE_SIZE.value,
      batch=batch,
      dtype=dtype,
      settings=settings,
    )
    try:
      step, to_first = make(name, batch, dtype, mode, parse(settings))
      taken = seconds_of(step, _REPEATS.value)
    except Exception as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      yield dict(row, milliseconds='out of memory')
      continue
    low, median, high = statistics.quantiles(taken, n=4)
    work = flops_of(name, _IMAGE_SIZE.value)[mode] * batch
    yield dict(
      row,
      milliseconds=f'{1e3 * median:.1f}',
      middle_half=f'{1e3 * low:.1f}–{1e3 * high:.1f}',
      images_per_second=f'{batch / median:.1f}',
      tflops_per_second=f'{work / median / 1e12:.3f}',
      share_of_peak=f'{work / median / peaks[dtype] / jax.device_count():.2f}',
      seconds_to_first=f'{to_first:.1f}',
      device=device.device_kind,
    )
    jax.clear_caches()


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
    'share_of_peak',
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
