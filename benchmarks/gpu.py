"""Runs one part of the measurements on a GPU; benchmarks/gpu.sh starts it.

A part has several cases. Each case runs in processes of its own. Its result is
written to FOLDER/results/PART.json, and its output to FOLDER/logs. A call that
has no time left ends with the status 75. The next call skips the cases that
have a result, and resumes a training run. docs/gpu.md describes the parts.
"""

import argparse
import csv
import functools
import importlib.util
import json
import math
import os
import pathlib
import shutil
import sys
import time

import gpu_call
import gpu_sizes

CALL_AGAIN = 75
TESTS = ('attention', 'bfloat16', 'resume', 'recipe')
SETTINGS = (  # of the model, compared with the defaults
  '',
  'attention=plain',
  'remat=dots',
  'remat=dense',
  'remat=full',
  'scan=True',
  'scan=True+remat=dense',
)
# Only without these operations have repeated runs the same bits.
DETERMINISTIC = '--xla_gpu_exclude_nondeterministic_ops=true'


def tests(call, sizes, _):
  """Runs the tests that are marked `gpu`."""

  def run(name):
    printed = call.run(
      f'tests_{name}',
      *('-m', 'pytest', '--noconftest', '-p', 'no:cacheprovider', '-v'),
      *('-o', 'addopts=', '-m', 'gpu', '-k', f'{name}{sizes.selected_tests}'),
      'tests/test_gpu.py',
      XLA_FLAGS=DETERMINISTIC,
    )
    return printed.splitlines()[-1].strip('= ')

  for name in TESTS:
    print(call.measure(name, functools.partial(run, name)))


# --- speed -------------------------------------------------------------------


def speed(call, sizes, _):
  """Times training and inference, and finds the fastest batch."""
  libraries = ['vit_jax']
  if importlib.util.find_spec('timm') and importlib.util.find_spec('torch'):
    libraries.append('timm')
  else:
    print('timm and torch are not installed: only vit_jax is timed')
  for model, image_size, batch in sizes.speed:
    for mode in ('training', 'inference'):
      for library in libraries:
        time_step = functools.partial(
          _time, call, sizes, library, model, mode, image_size
        )
        best = _fastest(time_step, batch, sizes.max_batch)
        call.keep(f'fastest: {library} {model} {image_size} {mode}', best)
        print(best)


def _fastest(time_step, batch, max_batch):
  """Doubles the batch while the rate rises; returns the row of the best one."""
  best, best_rate = None, 0.0
  while batch <= max_batch:
    row = time_step(batch) or {}
    rate = float(row.get('images_per_second') or 0)  # '': out of memory
    if rate <= best_rate:
      break
    best, best_rate = row, rate
    batch *= 2
  return best


def _time(
  call, sizes, library, model, mode, image_size, batch, settings='', flags=''
):
  """Returns the row of step_time.py for one combination, or None."""

  def run():
    table = call.folder / 'step_time.csv'
    call.run(
      'step_time',
      *('benchmarks/step_time.py', f'--libraries={library}'),
      *(f'--models={model}', f'--modes={mode}', f'--batches={batch}'),
      f'--image_size={image_size}',
      *filter(None, [settings and f'--settings={settings}']),
      *('--dtypes=bfloat16', f'--csv={table}', *sizes.timing),
      XLA_FLAGS=flags,
      # PyTorch needs memory, too.
      XLA_PYTHON_CLIENT_PREALLOCATE=str(library != 'timm').lower(),
    )
    return _rows(table)[0]

  name = f'{library} {model} {image_size} {mode} batch {batch}'
  return call.measure(' '.join(filter(None, (name, settings, flags))), run)


def _rows(table):
  with open(table, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


# --- layers ------------------------------------------------------------------


def layers(call, sizes, _):
  """Compares our layers with Flax's, and ways to save memory."""
  model, num_layers, image_size, batch = sizes.layers

  def products():
    table = call.folder / 'products.csv'
    call.run(
      'products',
      *('benchmarks/products.py', f'--model={model}', f'--batch={batch}'),
      *(f'--layers={num_layers}', f'--image_size={image_size}'),
      *('--dtype=bfloat16', '--accum_steps=1', f'--csv={table}'),
      *sizes.timing,
    )
    return _rows(table)

  print(call.measure('our layers and the layers of Flax', products))
  for library, settings, flags in (
    *(('vit_jax', settings, '') for settings in SETTINGS),
    ('vit_jax', '', DETERMINISTIC),
    ('flax', '', ''),
  ):
    case = library, model, 'training', image_size, batch, settings, flags
    print(_time(call, sizes, *case))


# --- CIFAR-10 ---------------------------------------------------------------

# A masked autoencoder for images of 32 px, in batches of 4096.
MAE = (
  *('data_on=device', 'pp.crop=32', 'pp.train_interpolation=bilinear'),
  *('model.patch_size=4', 'model.dtype=bfloat16', 'model.classifier=gap'),
  *('mae.decoder_size=192', 'mae.decoder_layers=4', 'mae.decoder_heads=6'),
  'log_every=100',
)
FINE_TUNING = ('layer_decay=0.75', 'augment.mix_off=0')


def cifar(call, sizes, seed):
  """Trains on CIFAR-10 from scratch, for as long as the rate allows."""
  rate = _rate(call, sizes, 'cifar', 'cifar10_scratch.py:gpu', ())
  if rate:
    epochs = _epochs(sizes, sizes.train_seconds, rate)
    config = f'cifar10_scratch.py:gpu,{epochs}'
    print(_train_seed(call, sizes, 'cifar', seed, config, ()))


def mae(call, sizes, seed):
  """Pre-trains a masked autoencoder on CIFAR-10, and fine-tunes it."""
  pre_training = f'mae.py:s16,{_data(call)}'
  rates = (
    _rate(call, sizes, 'mae', pre_training, MAE),
    _rate(call, sizes, 'fine_tuning', 'cifar10_scratch.py:gpu', FINE_TUNING),
  )
  if not all(rates):
    return
  epochs = _epochs(sizes, 0.3 * sizes.train_seconds, rates[1])
  second = f'cifar10_scratch.py:gpu,{min(epochs, 150)}'
  left = sizes.train_seconds - min(epochs, 150) * sizes.images[0] / rates[1]
  first = f'total_epochs={_epochs(sizes, left, rates[0])}'
  encoder = call.folder / f'mae_{seed}'
  if _train_seed(call, sizes, 'mae', seed, pre_training, MAE, first):
    case = 'fine_tuning', seed, second, FINE_TUNING
    print(_train_seed(call, sizes, *case, f'pretrained={encoder}'))


def _epochs(sizes, seconds, rate):
  return max(1, math.floor(seconds * rate / sizes.images[0]))


def _train_seed(call, sizes, part, seed, config, settings, *own):
  """Trains in several calls; returns the metrics and the seconds."""
  name = f'{part}_{seed}'
  checkpoints = call.folder / name / 'checkpoints'

  def run():
    key = f'seconds of the calls of {part}, seed {seed}'
    calls = call.results.get(key, [])
    start = time.monotonic()
    try:
      _train(
        *(call, sizes, name, config, settings, *own, f'seed={seed}'),
        stop=lambda: sizes.stops and not calls and any(checkpoints.glob('*')),
      )
    finally:
      calls.append(round(time.monotonic() - start))
      call.keep(key, calls)
    metrics = _last_metrics(call.folder / name)
    return {'seconds': sum(calls), 'config': config, **metrics}

  return call.measure(f'{part}, seed {seed}', run)


def _train(call, sizes, name, config, settings, *own, stop=lambda: False):
  """Runs a training, in the folder `name`."""
  settings = f'dataset={_data(call)}', *settings, *sizes.settings, *own
  call.run(
    name,
    *('-m', 'vit_jax.main', f'--config=configs/{config}'),
    f'--workdir={call.folder / name}',
    *(f'--config.{setting}' for setting in settings),
    stop=stop,
    XLA_FLAGS=DETERMINISTIC,
  )


def _data(call):
  return str(call.folder / 'cifar10.npz')


def _rate(call, sizes, name, config, settings):
  """Returns the images per second of a training, or None if it fails."""
  train_images, test_images = sizes.images

  def decode():
    return call.run(
      'decode',
      *('scripts/decode_npz.py', gpu_call.FILES / 'cifar10.npz', _data(call)),
      *(f'--train={train_images}', f'--test={test_images}'),
    )

  def run():
    workdir = call.folder / f'{name}_rate'
    shutil.rmtree(workdir, ignore_errors=True)
    _train(
      *(call, sizes, workdir.name, config, settings),
      *('total_epochs=0', f'total_steps={sizes.rate_steps}'),
      *('warmup_epochs=0', 'warmup_steps=0'),
      *(f'log_every={sizes.rate_steps // 2}', 'eval_every=0'),
      'checkpoint_every=0',
    )
    return _last_metrics(workdir)['images_per_second_per_device']

  if call.measure('decoding', decode) is None:
    return None
  return call.measure(f'images per second, {name}', run)


def _last_metrics(workdir):
  path = workdir / 'metrics.jsonl'
  return json.loads(path.read_text(encoding='utf-8').splitlines()[-1])


# --- one call ----------------------------------------------------------------


PARTS = {part.__name__: part for part in (tests, speed, layers, cifar, mae)}


def check_machine(call, is_tiny):
  """Writes machine.json. Without a GPU, only the rehearsal continues."""
  path = call.path.with_name('machine.json')
  call.run('machine', 'benchmarks/machine.py', path)
  machine = json.loads(path.read_text(encoding='utf-8'))
  if machine['platform'] != 'gpu' and not is_tiny:
    sys.exit(f'JAX has no GPU, only {machine["device"]}. Use --rehearse')


def main():
  """Runs one call."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('part', choices=PARTS)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0, help='of cifar and mae')
  parser.add_argument(
    '--seconds', type=float, default=430, help='time limit of the call'
  )
  parser.add_argument('--tiny', action='store_true', help='for a rehearsal')
  args = parser.parse_args()
  deadline = time.monotonic() + args.seconds
  folder = args.folder.resolve()
  sizes = gpu_sizes.TINY if args.tiny else gpu_sizes.FULL
  call = gpu_call.Call(folder, args.part, deadline, sizes.case_seconds)
  gpu_call.use_wheels(folder)
  os.environ['JAX_PLATFORMS'] = 'cpu' if args.tiny else 'cuda'
  if args.tiny:  # compile quickly
    os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'compiled')
  try:
    check_machine(call, args.tiny)
    PARTS[args.part](call, sizes, args.seed)
  except gpu_call.OutOfTime:
    print(f'{args.part} is not complete: start the same command again')
    sys.exit(CALL_AGAIN)
  except gpu_call.Failed as error:
    sys.exit(str(error))
  if call.failures:
    sys.exit(f'{args.part} failed: {"; ".join(call.failures)}')
  print(f'{args.part} is complete: {call.path}')


if __name__ == '__main__':
  main()
