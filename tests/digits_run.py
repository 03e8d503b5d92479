"""Short training runs on the digits, and comparisons of their results."""

import os

import numpy as np


def make_config(**settings):
  from vit_jax import base_config

  config = base_config.for_dataset('digits')
  config.pretrained = 'scratch'
  config.model.name = 'testing'
  config.model.patch_size = 4
  config.pp.update(dict(crop=8, min_area=0.5))
  config.update(
    dict(
      batch=32,
      batch_eval=128,
      accum_steps=2,
      total_steps=8,
      warmup_steps=2,
      log_every=2,
      eval_every=4,
      checkpoint_every=4,
    )
  )
  config.update(settings)
  return config


def train(workdir):
  """Trains to the last step; returns (workdir, state, results)."""
  from vit_jax import train as training

  result = training.train_and_evaluate(make_config(), str(workdir))
  return str(workdir), result.state, result.metrics


def rows_of(workdir):
  from vit_jax.run.writers import metric_log

  return metric_log.read(os.path.join(workdir, 'metrics.jsonl'))


def without_rates(rows):
  return [
    {k: v for k, v in row.items() if not k.startswith('images_per')}
    for row in rows
  ]


def assert_equal(a, b):
  import jax

  jax.tree.map(np.testing.assert_array_equal, a, b)


class Interrupted(BaseException):
  """Stops a run before its last step."""


def interrupt_at(step):
  def hook(now, state, metrics):
    if now == step:
      raise Interrupted

  return hook


def arrays():
  """Returns {split: (images, labels)} of the digits, as uint8 arrays."""
  from sklearn import datasets

  from vit_jax.data import examples

  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  in_test = np.array(
    [examples.hash_fraction(str(i)) < 0.2 for i in range(len(images))]
  )
  return {
    'train': (images[~in_test], digits.target[~in_test]),
    'test': (images[in_test], digits.target[in_test]),
  }


class InOrder:
  """The raw training digits in the order of a run, one by one.

  Processes of a data loader can import it quickly.
  """

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, position):
    from vit_jax.data.in_memory import shuffle

    images, labels = arrays()['train']
    (index,) = shuffle.examples_at([position], 0, len(images))
    return {'image': images[index], 'label': labels[index]}
