"""Compares training from scratch with pre-training without labels on CIFAR-10.

  python scripts/make_npz.py cifar10 cifar10.npz
  python benchmarks/without_labels.py cifar10.npz FOLDER --seeds=0

The numbers of steps were chosen so that each method takes the same time, about
12 minutes of one core on our machine. The `seconds` of a result are its images
divided by the median of its speed: other work on the machine changes them. From
scratch, it is spent on labelled images. The other methods spend 3/4 of it on
all 50,000 images without labels, and 1/4 on fine-tuning. Labels are those of
1 %, 10 % or 100 % of the training images, the same number of each class. The
model is a plain ViT at 32 px.

The features of each encoder are measured before fine-tuning, by the nearest
neighbors and by a linear probe with all labels. Raw pixels and an encoder with
random values are the floors that a method must pass.

Each run is the command of a user in a new process. FOLDER gets the run folders.
A run that was stopped resumes. A complete run adds a line to the file
--results, and is not repeated. With --tune, 5,000 training images take the
place of the test images, and are not trained on.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys

import machine
import numpy as np

from vit_jax.data.given import encoded_images
from vit_jax.data.image_files import decoding
from vit_jax.evaluators import knn

RESULTS = os.path.join(
  os.path.dirname(__file__), 'results/without_labels.jsonl'
)
FRACTIONS = {'1 %': 0.01, '10 %': 0.1, '100 %': 1.0}  # of the labels
_MODEL = {
  'model.hidden_size': 128,
  'model.mlp_dim': 256,
  'model.num_heads': 4,
  'model.num_layers': 4,
  'model.patch_size': 4,
  'model.classifier': 'gap',
  'model.positions': 'sincos2d',
  'model.drop_path_rate': 0.0,
}
_MUON = {
  'optimizer': 'muon',
  'muon_rms': 0.0,
  'base_lr': 0.01,
  'weight_decay': 0.05,
}
_PRE_TRAINING = {
  **_MODEL,
  'pp.crop': 32,
  'pp.train_interpolation': 'bilinear',
  'pp.min_area': 1.0,
  'augment.pad': 2,
  'data_on': 'device',
  'total_epochs': 0.0,
  'warmup_epochs': 0.0,
  'warmup_steps': 50,
  'eval_every': 0,
  'batch': 128,
  **_MUON,
}
_LABELLED = {
  **_MODEL,
  'model.stem_units': None,
  'model.rotary': None,
  'model.qk_norm': False,
  'eval_every': 0,
  **_MUON,
}
# {method: (config, settings, steps)}. The steps take about the same time.
METHODS = {
  'masked patches': ('masked_patches', {}, 970),
  'MAE': (
    'mae',
    {'mae.decoder_size': 64, 'mae.decoder_layers': 2, 'mae.decoder_heads': 4},
    1560,
  ),
  'DINO': (
    'dino',
    {
      'optimizer': 'adamw',
      'base_lr': 1e-3,
      'weight_decay': 0.04,
      'augment.pad': 0,
      'data_on': 'host',
      'pp.min_area': 0.5,
      'dino.prototypes': 1024,
      'dino.local_views': 4,
      'dino.local_size': 16,
      'dino.local_min_area': 0.2,
      'dino.local_max_area': 0.5,
      'dino.blur': False,
      'dino.frozen_epochs': 0.05,  # 20 steps
      'dino.momentum': 0.99,
    },
    250,
  ),
}
# An encoder with random values: a run whose only step changes nothing.
_RANDOM = ('masked_patches', {'base_lr': 1e-12, 'warmup_steps': 0}, 1)
# Steps of runs with labels, in batches of 64
_FROM_SCRATCH = 2800
_FINE_TUNING = 700


def write_files(dataset, folder, seed, tune):
  """Writes a file for each number of labels; returns {fraction: path}."""
  folder = os.path.abspath(folder)
  os.makedirs(folder, exist_ok=True)
  paths = {
    name: os.path.join(folder, f'labels_{fraction:g}_seed{seed}.npz')
    for name, fraction in FRACTIONS.items()
  }
  if all(map(os.path.exists, paths.values())):
    return paths
  with np.load(dataset) as file:
    arrays = dict(file)
  image, test_image = (
    encoded_images.decode(
      arrays[f'{start}image'],
      arrays[f'{start}image_offsets'],
      f'{start}image',
      decoding.resolve(),
    )
    for start in ('', 'test_')
  )
  label, test_label = arrays['label'], arrays['test_label']
  if tune:
    test_image, test_label = image[-5000:], label[-5000:]
    image, label = image[:-5000], label[:-5000]
  order = np.random.default_rng(seed).permutation(len(label))
  for name, fraction in FRACTIONS.items():
    kept = np.sort(
      np.concatenate(
        [
          indices[: round(fraction * len(indices))]
          for indices in (order[label[order] == k] for k in range(10))
        ]
      )
    )
    np.savez(
      paths[name],
      image=image[kept],
      label=label[kept],
      test_image=test_image,
      test_label=test_label,
      class_names=arrays['class_names'],
    )
  return paths


def call(*command):
  """Runs a command of vit_jax, and exits if it fails."""
  if subprocess.call([sys.executable, '-m', *command]):
    sys.exit(f'{" ".join(command)}: the command failed')


def train(config, workdir, settings):
  """Starts or resumes a run; returns the last metrics, with the seconds."""
  call(
    *('vit_jax.main', f'--config=configs/{config}', f'--workdir={workdir}'),
    *(f'--config.{name}={value}' for name, value in settings.items()),
  )
  with open(f'{workdir}/metrics.jsonl', encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  with open(f'{workdir}/config.json', encoding='utf-8') as file:
    images = rows[-1]['step'] * json.load(file)['batch']
  name = 'images_per_second_per_device'
  rates = [row[name] for row in rows if name in row]
  seconds = round(images / statistics.median(rates)) if rates else 0
  return rows[-1] | {'seconds': seconds, 'images': images}


def pre_train(method, workdir, data, seed):
  """Trains an encoder on images without labels; returns its numbers."""
  task, changes, steps = METHODS.get(method, _RANDOM)
  settings = {**_PRE_TRAINING, 'seed': seed, **changes, 'total_steps': steps}
  numbers = train(f'{task}.py:ViT-Ti_16,{data}', workdir, settings)
  call(
    *('vit_jax', 'evaluate', workdir, '--with=knn,linear_probe'),
    f'--dataset={data}',
  )
  with open(f'{workdir}/evaluations.jsonl', encoding='utf-8') as file:
    features = json.loads(file.readlines()[-1])
  return {
    'kNN': 100 * features['accuracy_k20_knn'],
    'linear probe': 100 * features['accuracy_linear_probe'],
    **_cost(numbers),
    **({'loss': numbers['loss_test']} if method in METHODS else {}),
  }


def _cost(numbers):
  return {name: numbers[name] for name in ('seconds', 'images')}


def measure_pixels(data):
  """Returns the accuracy of the nearest neighbors of raw pixels."""
  with np.load(data) as file:
    train_set, test_set = (
      {
        'feature': file[f'{start}image'].reshape(-1, 3072).astype(np.float32)
        / 127.5
        - 1,
        'label': file[f'{start}label'],
      }
      for start in ('', 'test_')
    )
  found = knn.measure(train_set, test_set, 10, k=(20,), temperature=0.07)
  return {'kNN': 100 * found.numbers['accuracy_k20']}


def train_labelled(data, workdir, seed, encoder):
  """Trains on labelled images, from scratch or from an encoder."""
  steps = _FINE_TUNING if encoder else _FROM_SCRATCH
  settings = {
    **_LABELLED,
    'dataset': data,
    'total_steps': steps,
    'warmup_steps': steps // 20,
    'seed': seed,
    'pretrained': encoder or 'scratch',
  }
  numbers = train('cifar10_scratch.py:cpu', workdir, settings)
  return {'accuracy': 100 * numbers['accuracy_test'], **_cost(numbers)}


def read_results(path):
  """Returns {(row, seed): numbers} of the file of results."""
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    lines = [json.loads(line) for line in file]
  return {(line['row'], line['seed']): line['numbers'] for line in lines}


def jobs(paths, folder, seed):
  """Returns {row: function that returns its numbers}, in order."""
  found, all_images = {}, paths['100 %']

  def workdir(row):
    name = ''.join(x if x.isalnum() else '_' for x in row)
    return os.path.join(folder, f'{name}_seed{seed}')

  found['raw pixels'] = lambda: measure_pixels(all_images)
  for method in ('random encoder', 'from scratch', *METHODS):
    if method != 'from scratch':
      found[method] = functools.partial(
        pre_train, method, workdir(method), all_images, seed
      )
    for fraction, data in paths.items() if method != 'random encoder' else ():
      row = f'{method}, {fraction} of the labels'
      encoder = workdir(method) if method in METHODS else None
      found[row] = functools.partial(
        train_labelled, data, workdir(row), seed, encoder
      )
  return found


def print_table(results):
  """Prints the numbers of all seeds of each row."""
  print('| row | number | seeds | values | mean |')
  print('| --- | --- | ---: | --- | ---: |')
  rows = dict.fromkeys(row for row, _ in results)
  for row in rows:
    lines = [x for (name, _), x in sorted(results.items()) if name == row]
    for name in lines[0]:
      values = [line[name] for line in lines]
      print(
        f'| {row} | {name} | {len(values)} '
        f'| {", ".join(f"{x:.2f}" for x in values)} '
        f'| {statistics.mean(values):.2f} |'
      )


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('dataset', help='a file of scripts/make_npz.py')
  parser.add_argument('folder', help='folder of the run folders')
  parser.add_argument('--seeds', default='0,1,2', help='default: 0,1,2')
  parser.add_argument('--rows', default='', help='text in the names of rows')
  parser.add_argument('--results', default=RESULTS, help='file of the results')
  parser.add_argument('--tune', action='store_true')
  args = parser.parse_args()
  for seed in map(int, args.seeds.split(',')):
    paths = write_files(args.dataset, args.folder, seed, args.tune)
    for row, job in jobs(paths, args.folder, seed).items():
      if args.rows not in row or (row, seed) in read_results(args.results):
        continue
      numbers = {name: round(x, 4) for name, x in job().items()}
      line = {'row': row, 'seed': seed, 'numbers': numbers}
      line['machine'] = machine.cpu()
      with open(args.results, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
  print_table(read_results(args.results))


if __name__ == '__main__':
  main()
