"""Digits with other labels: numbers, or several labels per image."""

import functools

import numpy as np

from tests import digits_run
from vit_jax import data as vit_data
from vit_jax import train


@functools.cache
def digits():
  """Returns (images uint8 [N, 8, 8, 1], class numbers [N])."""
  from sklearn import datasets

  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  return images[..., None], digits.target


def two_numbers():
  """Returns float32 [N, 2]: the digit, and the brightness in another unit."""
  images, digit = digits()
  brightness = 3 * images.mean((1, 2, 3)) + 1000
  return np.stack([digit, brightness], 1).astype(np.float32)


def several_labels():
  """Returns 0 or 1 [N, 4]. No image has the last label."""
  images, digit = digits()
  light = images.mean((1, 2, 3)) > 80
  return np.stack([digit % 2 == 0, digit > 4, light, digit > 9], 1).astype(int)


def make_data(labels, num_train=800, num_test=150, **options):
  images, _ = digits()
  end = num_train + num_test
  return vit_data.from_arrays(
    images[:num_train],
    labels[:num_train],
    test=(images[num_train:end], labels[num_train:end]),
    **options,
  )


def test_inputs(num_train=800, num_test=150):
  """Returns the model's inputs for the test images, [N, 8, 8, 3] in [−1, 1]."""
  images = digits()[0][num_train : num_train + num_test].repeat(3, -1)
  return images.astype(np.float32) / 127.5 - 1


def make_config(**settings):
  config = digits_run.make_config(
    **{
      **dict(accum_steps=1, total_steps=6, eval_every=0, batch_eval=64),
      **dict(log_every=0, checkpoint_every=0, base_lr=0.03),
      **settings,
    }
  )
  config.pp.update(dict(min_area=1.0, flip=False))
  return config


def fit(task, labels, workdir, **options):
  """Trains; returns the `Result`."""
  return train.train_and_evaluate(
    make_config(), str(workdir), task=task, data=make_data(labels, **options)
  )
