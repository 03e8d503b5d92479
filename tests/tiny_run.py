"""A short training run on a folder of images, for tests of finished runs."""

import dataclasses
import pathlib
import typing

import numpy as np
from PIL import Image

CLASSES = ('bark', 'moss', 'sand')


@dataclasses.dataclass(frozen=True)
class Run:
  workdir: str
  photos: pathlib.Path  # contains {train,test}/{class}/image
  config: typing.Any
  params: typing.Any  # after the last step
  results: dict[str, float]  # of the last evaluation


def write_photos(folder):
  """Writes 60 noisy images; the mean color depends slightly on the class."""
  rng = np.random.default_rng(0)
  for part, count in (('train', 10), ('test', 10)):
    for label, name in enumerate(CLASSES):
      (folder / part / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.uniform(0, 200, (11, 14, 3))
        pixels[..., label] += 12
        Image.fromarray(pixels.astype(np.uint8)).save(
          folder / part / name / f'{i}.png'
        )


def make_config(photos):
  from vit_jax import base_config

  config = base_config.for_dataset(str(photos))
  config.pretrained = 'scratch'
  config.model.update(
    dict(
      name='testing',
      patch_size=4,
      hidden_size=12,
      num_heads=3,
      classifier='gap',
    )
  )
  config.pp.update(dict(crop=8, crop_width=12, min_area=0.5))
  config.update(
    dict(
      batch=32,
      batch_eval=16,
      accum_steps=1,
      total_steps=20,
      warmup_steps=2,
      base_lr=0.1,
      log_every=0,
      eval_every=0,
      checkpoint_every=10,
    )
  )
  return config


def train(folder):
  import jax

  from vit_jax import train as training

  write_photos(folder / 'photos')
  config = make_config(folder / 'photos')
  state, results, *_ = training.train_and_evaluate(config, str(folder / 'run'))
  assert 1 / 3 < results['accuracy_test'] < 1
  return Run(
    str(folder / 'run'),
    folder / 'photos',
    config,
    jax.device_get(state.params),
    results,
  )
