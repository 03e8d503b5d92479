"""Measures the seconds from one photo to its classes: first and second call.

  python benchmarks/prediction.py --model=b16

`classify` of a loaded model is compared with a jitted function of the same
model and the same preprocessing. Both start in a new process. The parameters
are random.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image


def write_files(folder, name):
  """Writes random weights, and a photo of 640 x 480 pixels."""
  import jax
  import jax.numpy as jnp

  from vit_jax import checkpoint
  from vit_jax import models

  model = models.get_model(name, num_classes=1000)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
  checkpoint.save(os.path.join(folder, 'weights.npz'), params['params'])
  pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
  Image.fromarray(pixels).save(os.path.join(folder, 'photo.jpg'))


def measure(kind, folder):
  """Prints the seconds of three calls."""
  import jax

  import vit_jax
  from vit_jax.data import preprocess
  from vit_jax.data import tensorflow as tf

  tf.load()
  photo = os.path.join(folder, 'photo.jpg')
  model = vit_jax.load(os.path.join(folder, 'weights.npz'))
  params = jax.device_put(model.params)
  apply = jax.jit(
    lambda params, images: jax.nn.softmax(
      model.model.apply({'params': params}, images, train=False)
    )
  )

  def jitted():
    image = preprocess.for_evaluation(tf.io.read_file(photo), model.image_size)
    jax.block_until_ready(apply(params, np.asarray(image)[None]))

  function = {'jitted': jitted, 'classify': lambda: model.classify([photo])}
  for _ in range(3):
    start = time.perf_counter()
    function[kind]()
    print(f'{time.perf_counter() - start:.2f}')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='b16', help='architecture')
  parser.add_argument('--measure', nargs=2, help='for the processes it starts')
  args = parser.parse_args()
  if args.measure:
    return measure(*args.measure)
  print('| function | first call, s | second | third |')
  print('| --- | ---: | ---: | ---: |')
  with tempfile.TemporaryDirectory() as folder:
    write_files(folder, args.model)
    for kind in ('jitted', 'classify'):
      done = subprocess.run(
        [sys.executable, __file__, '--measure', kind, folder],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
      )
      print(f'| {kind} | {" | ".join(done.stdout.split())} |', flush=True)


if __name__ == '__main__':
  main()
