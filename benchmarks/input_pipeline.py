"""Speed of the training input, compared with decoding alone.

  LD_PRELOAD=libtcmalloc_minimal.so.4 python benchmarks/input_pipeline.py

The photographs are crops of scikit-learn's two sample images, 500 × 375 pixels,
in files of about 60 and 110 kB (the mean of ImageNet's training images is 115
kB). The small images have 32 × 32 pixels. All pipelines read the same folder,
crop 5 % to 100 % of the area at random, and make NumPy batches of 64 images:

  decoding: reads files and decodes crops, and nothing else. The crops are drawn
    before.
  original: the tf.data pipeline that google-research/vision_transformer
    describes. It decodes entire images.
  host, device: vit_jax with this value of `config.pp.train_resize_on`.

They take turns. Each turn is a new pipeline, and its first batches are not
timed. The CPU time of all threads depends less on other programs than the time
that passes, so the fraction of `decoding` is a ratio of CPU times: of the
medians over all turns.
"""

import itertools
import os
import pathlib
import resource
import tempfile
import time

from absl import app
from absl import flags
import numpy as np
from PIL import Image
from sklearn import datasets

from vit_jax import base_config
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf
from vit_jax.run import setup

_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each pipeline.')
_NUM_BATCHES = flags.DEFINE_integer('num_batches', 12, 'Timed batches a turn.')

_BATCH, _NUM_FILES, _NUM_BOXES = 64, 512, 2048
_MIN_AREA = 0.05
# name: (width and height of the files, JPEG quality, size of the batches)
_KINDS = {
  'photographs': ((500, 375), 92, 224),
  'large files': ((500, 375), 98, 224),
  'small': ((32, 32), 92, 32),
}
_IMAGES = flags.DEFINE_list('images', list(_KINDS), 'Kinds of images.')


def write_folder(folder, size, quality):
  """Writes two classes of JPEG files, cropped at random offsets."""
  rng = np.random.default_rng(0)
  for name, pixels in zip(
    ('china', 'flower'), datasets.load_sample_images().images, strict=True
  ):
    folder.joinpath('train', name).mkdir(parents=True)
    for i in range(_NUM_FILES // 2):
      left, top = rng.integers(0, (640 - 500, 427 - 375))
      image = Image.fromarray(pixels[top : top + 375, left : left + 500])
      image.resize(size).save(
        folder / 'train' / name / f'{i}.jpg', quality=quality
      )


def decoding(files, size):
  """Returns a function that starts the pipeline, as those below.

  A batch has one pixel of each crop.
  """
  del size
  width, height = Image.open(files[0]).size
  boxes = tf.map_fn(
    lambda seed: tf.stack(
      preprocess._random_box((height, width, 3), seed, _MIN_AREA)
    ),
    tf.stack([tf.zeros(_NUM_BOXES, tf.int32), tf.range(_NUM_BOXES)], 1),
  )
  names = tf.constant(files)

  def crop(i):
    content = tf.io.read_file(names[i % len(files)])
    box = boxes[i % _NUM_BOXES]
    return tf.io.decode_and_crop_jpeg(content, box, channels=3)[0, 0]

  options = tf.data.Options()
  options.threading.max_intra_op_parallelism = 1
  dataset = tf.data.Dataset.range(2**60).map(crop, tf.data.AUTOTUNE)
  dataset = dataset.batch(_BATCH).with_options(options).prefetch(2)
  return dataset.as_numpy_iterator


def original(files, size):
  def read(file, label):
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
      tf.shape(image),
      tf.zeros([0, 0, 4]),
      area_range=(_MIN_AREA, 1.0),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    image = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, 3])
    image = tf.image.resize(image, [size, size])
    if tf.random.uniform([]) > 0.5:
      image = tf.image.flip_left_right(image)
    return {'image': (image - 127.5) / 127.5, 'label': tf.one_hot(label, 2)}

  labels = [int('flower' in file) for file in files]
  dataset = tf.data.Dataset.from_tensor_slices((files, labels))
  dataset = dataset.repeat().shuffle(_NUM_FILES).map(read, tf.data.AUTOTUNE)
  dataset = dataset.batch(_BATCH, drop_remainder=True).prefetch(1)
  return dataset.as_numpy_iterator


def vit_jax(resize_on):
  def make(files, size):
    config = base_config.for_dataset(str(pathlib.Path(files[0]).parents[2]))
    config.update({'batch': _BATCH, 'validation': 0})
    config.pp.update({'crop': size, 'min_area': _MIN_AREA})
    config.pp.train_resize_on = resize_on
    return setup.get_datasets(config).train

  return make


PIPELINES = {
  'decoding': decoding,
  'original': original,
  'host': vit_jax('host'),
  'device': vit_jax('device'),
}


def turn(batches):
  """Returns (seconds, CPU seconds) per image."""
  for _ in range(4):
    next(batches)
  start, cpu = time.perf_counter(), cpu_seconds()
  for _ in itertools.islice(batches, _NUM_BATCHES.value):
    pass
  count = _NUM_BATCHES.value * _BATCH
  seconds = time.perf_counter() - start
  return seconds / count, (cpu_seconds() - cpu) / count


def cpu_seconds():
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def main(_):
  print(
    '| images | kB | pipeline | images/s | CPU time per image, µs | '
    'fraction of decoding |\n| --- | ---: | --- | ---: | ---: | ---: |'
  )
  for kind in _IMAGES.value:
    size, quality, crop = _KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
      write_folder(pathlib.Path(folder), size, quality)
      files = sorted(map(str, pathlib.Path(folder).glob('*/*/*.jpg')))
      kb = np.mean([os.path.getsize(file) for file in files]) / 1000
      ready = {name: make(files, crop) for name, make in PIPELINES.items()}
      taken = {name: [] for name in PIPELINES}
      for _ in range(_ROUNDS.value):
        for name, start in ready.items():
          taken[name].append(turn(start()))
    taken = {name: np.median(x, axis=0) for name, x in taken.items()}
    for name, (seconds, cpu) in taken.items():
      print(
        f'| {kind} | {kb:.1f} | {name} | {1 / seconds:.0f} | {1e6 * cpu:.0f} | '
        f'{taken["decoding"][1] / cpu:.2f} |',
        flush=True,
      )
  print(f'\n{os.cpu_count()} cores, LD_PRELOAD={os.environ.get("LD_PRELOAD")}')


if __name__ == '__main__':
  app.run(main)
