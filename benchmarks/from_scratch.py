"""Trains on CIFAR-10 from scratch: several seeds, and an ablation.

  python scripts/make_npz.py cifar10 cifar10.npz
  python benchmarks/from_scratch.py cifar10.npz FOLDER --rows=cpu
  python benchmarks/from_scratch.py cifar10.npz FOLDER --rows=ablation

Each run is the command of a user, `configs/cifar10_scratch.py`, in a new
process. FOLDER gets a run folder for each row and seed. A run that was stopped
resumes. A complete run adds a line to the file --results: the accuracy of the
last checkpoint on all test images. A run with such a line is not repeated, on
any machine. At the end, the script prints the table of the rows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import machine

_ADAMW = {
  'optimizer': 'adamw',
  'base_lr': 2e-3,
  'adam_b2': 0.99,
  'grad_norm_clip': 1.0,
}
_PLAIN = {
  'model.stem_units': None,
  'model.patch_size': 4,
  'model.rotary': None,
  'model.qk_norm': False,
}
_SHORT = {'total_steps': 1000, 'warmup_steps': 50, 'eval_every': 0}
_ROTARY = {'model.rotary': 'axial', 'model.qk_norm': True}

# {row: (argument of the config, changes of its settings)}
ROWS = {
  'cpu': ('cpu', {}),
  'cpu30': ('cpu30', {}),
  **{
    f'ablation: {name}': ('cpu', {**_SHORT, **changes})
    for name, changes in {
      'as in the config': {},
      'AdamW, 2e-3': _ADAMW,
      'no augmentation': {'augment.pad': 0, 'pp.flip': False},
      'and RandAugment(2, 5)': {'augment.policy': 'randaug_fixed(2,5)'},
      'and mixup 0.2, CutMix 1': {'augment.mixup': 0.2, 'augment.cutmix': 1.0},
      'and EMA 0.99': {'ema_decay': 0.99},
      'and drop path 0.1': {'model.drop_path_rate': 0.1},
      'without rotary positions and QK norm': {
        'model.rotary': None,
        'model.qk_norm': False,
      },
      'plain patches, rotary positions and QK norm': {**_PLAIN, **_ROTARY},
      'plain patches, learned positions': _PLAIN,
      'plain patches, relative positions': {
        **_PLAIN,
        'model.positions': 'relative',
      },
      'plain patches, 2-D sine and cosine': {
        **_PLAIN,
        'model.positions': 'sincos2d',
      },
      'plain patches, class token': {**_PLAIN, 'model.classifier': 'token'},
    }.items()
  },
}


RESULTS = os.path.join(os.path.dirname(__file__), 'results/from_scratch.jsonl')


def run(dataset, workdir, row, seed):
  """Starts or resumes a run; returns whether it ended well."""
  device, changes = ROWS[row]
  settings = {'dataset': dataset, 'seed': seed, **changes}
  return not subprocess.call(
    [
      *(sys.executable, '-m', 'vit_jax.main', f'--workdir={workdir}'),
      f'--config=configs/cifar10_scratch.py:{device}',
      *(f'--config.{name}={value}' for name, value in settings.items()),
    ]
  )


def find_result(workdir):
  """Returns the numbers of a complete run, as {name: value}, or None."""
  try:
    with open(f'{workdir}/config.json', encoding='utf-8') as file:
      config = json.load(file)
    with open(f'{workdir}/metrics.jsonl', encoding='utf-8') as file:
      rows = [json.loads(line) for line in file]
  except OSError:
    return None
  if (
    not rows
    or rows[-1]['step'] != config['total_steps']
    or 'accuracy_test' not in rows[-1]
  ):
    return None
  rates = [
    row['images_per_second_per_device']
    for row in rows
    if 'images_per_second_per_device' in row
  ]
  return {
    'accuracy_test': round(100 * rows[-1]['accuracy_test'], 2),
    'images': config['total_steps'] * config['batch'],
    'images_per_second': round(statistics.median(rates)),
    'machine': machine.cpu(),
    'commit': machine.output_of('git', 'rev-parse', '--short', 'HEAD'),
  }


def read_results(path):
  """Returns {(row, seed): numbers} of the file of results."""
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    lines = [json.loads(line) for line in file]
  return {(line['row'], line['seed']): line for line in lines}


def name_of(row, seed):
  """Returns the name of a run folder."""
  return ''.join(x if x.isalnum() else '_' for x in row) + f'_seed{seed}'


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('dataset', help='a file of scripts/make_npz.py')
  parser.add_argument('folder', help='folder of the run folders')
  parser.add_argument(
    '--rows', default='', help='cpu, cpu30 or ablation; default: all'
  )
  parser.add_argument('--seeds', default='0,1,2', help='default: 0,1,2')
  parser.add_argument('--hours', type=float, default=6.0, help='time limit')
  parser.add_argument('--results', default=RESULTS, help='file of the results')
  args = parser.parse_args()
  rows = [
    row for row in ROWS if row.split(':')[0] == args.rows or not args.rows
  ]
  if not rows:
    sys.exit(f'--rows={args.rows}: use one of cpu, cpu30, ablation')
  seeds = [int(seed) for seed in args.seeds.split(',')]
  end = time.time() + 3600 * args.hours
  for seed in seeds:
    for row in rows:
      if (row, seed) in read_results(args.results) or time.time() > end:
        continue
      workdir = os.path.join(args.folder, name_of(row, seed))
      if not find_result(workdir) and not run(args.dataset, workdir, row, seed):
        sys.exit(f'{workdir}: the run failed')
      line = {'row': row, 'seed': seed, **find_result(workdir)}
      with open(args.results, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
  print_table(rows, read_results(args.results))


def print_table(rows, results):
  """Prints a line for each row, with the results of all its seeds."""
  print('| row | seeds | test accuracy, % | mean |')
  print('| --- | ---: | --- | ---: |')
  for row in rows:
    found = [
      line['accuracy_test']
      for (name, _), line in sorted(results.items())
      if name == row
    ]
    if found:
      print(
        f'| {row.removeprefix("ablation: ")} | {len(found)} '
        f'| {", ".join(f"{x:.2f}" for x in found)} '
        f'| {statistics.mean(found):.2f} |'
      )


if __name__ == '__main__':
  main()
