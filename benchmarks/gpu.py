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


# --- CIFAR-10 from scratch ---------------------------------------------------


def cifar(call, sizes, seed):
  """Trains on CIFAR-10 from scratch, for as long as the rate allows."""
  train = functools.partial(_train, call, sizes)
  rate = call.measure('rate', functools.partial(_rate, call, sizes, train))
  if not rate:
    return
  name = f'cifar_{seed}'
  checkpoints = call.folder / name / 'checkpoints'

  def run():
    calls = call.results.get(f'seconds of the calls of seed {seed}', [])
    start = time.monotonic()
    try:
      train(
        name,
        f'cifar10_scratch.py:gpu,{rate["epochs"]}',
        f'seed={seed}',
        stop=lambda: sizes.stops and not calls and any(checkpoints.glob('*')),
      )
    finally:
      calls.append(round(time.monotonic() - start))
      call.keep(f'seconds of the calls of seed {seed}', calls)
    metrics = _last_metrics(call.folder / name)
    return {'seconds': sum(calls), **rate, **metrics}

  print(call.measure(f'seed {seed}', run))


def _train(call, sizes, name, config, *settings, stop=lambda: False):
  """Runs a training, in the folder `name`."""
  call.run(
    name,
    *('-m', 'vit_jax.main', f'--config=configs/{config}'),
    *(f'--workdir={call.folder / name}', '--config.dataset=' + _data(call)),
    *(f'--config.{setting}' for setting in (*sizes.settings, *settings)),
    stop=stop,
    XLA_FLAGS=DETERMINISTIC,
  )


def _data(call):
  return str(call.folder / 'cifar10.npz')


def _rate(call, sizes, train):
  """Returns images per second, and how many epochs fill the time."""
  train_images, test_images = sizes.images
  call.run(
    'decode',
    *('scripts/decode_npz.py', gpu_call.FILES / 'cifar10.npz', _data(call)),
    *(f'--train={train_images}', f'--test={test_images}'),
  )
  shutil.rmtree(call.folder / 'cifar_rate', ignore_errors=True)
  train(
    'cifar_rate',
    'cifar10_scratch.py:gpu',
    *('total_epochs=0', f'total_steps={sizes.rate_steps}', 'warmup_steps=0'),
    *(f'log_every={sizes.rate_steps // 2}', 'eval_every=0'),
    'checkpoint_every=0',
  )
  metrics = _last_metrics(call.folder / 'cifar_rate')
  rate = metrics['images_per_second_per_device']
  epochs = math.floor(sizes.train_seconds * rate / train_images)
  return {'images_per_second': rate, 'epochs': max(1, epochs)}


def _last_metrics(workdir):
  path = workdir / 'metrics.jsonl'
  return json.loads(path.read_text(encoding='utf-8').splitlines()[-1])


# --- one call ----------------------------------------------------------------


PARTS = {part.__name__: part for part in (tests, speed, layers, cifar)}


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
  parser.add_argument('--seed', type=int, default=0, help='of the part cifar')
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
