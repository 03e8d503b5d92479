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
  from vit_jax.run import metric_log

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
