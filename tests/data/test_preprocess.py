import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import reference
from vit_jax.data import data_settings
from vit_jax.data import preprocess
from vit_jax.data.image_files import image_decoder

NAMES = ('0_32x32', '1_200x300', '2_224x224', '3_375x500')
EXTRA = ('gray_120x90', 'prog420_120x90', 'px_1x1', 'q95_444_64x400')


def jpeg(name):
  return tf.constant((reference.JPEGS / f'{name}.jpg').read_bytes())


@pytest.mark.parametrize(
  'key, size, names, stride',
  [
    ('32', 32, NAMES, 1),
    ('224', 224, NAMES, 8),
    ('384', 384, NAMES, 16),
    ('extra_64', 64, EXTRA, 1),
  ],
)
@pytest.mark.parametrize('in_graph', [False, True])
def test_evaluation_images_equal_the_reference(
  key, size, names, stride, in_graph
):
  function = (
    tf.function(preprocess.for_evaluation)
    if in_graph
    else (preprocess.for_evaluation)
  )
  for name, expected in zip(
    names, reference.arrays()[f'images/{key}'], strict=True
  ):
    image = function(jpeg(name), (size, size)).numpy()
    assert image.shape == (size, size, 3) and image.dtype == np.float32
    np.testing.assert_allclose(
      image[::stride, ::stride], expected, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize('shape', [(7, 9), (31, 40)])  # below and above 4 times
def test_resized_integers_are_those_of_the_kernel_for_integers(shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  expected = tf.image.resize(image, (12, 16)).numpy()
  found = tf.function(preprocess.resize)(tf.constant(image), (12, 16)).numpy()
  np.testing.assert_array_equal(found, expected)


def smooth_image():
  rng = np.random.default_rng(0)
  small = rng.integers(0, 255, (6, 8, 3), np.uint8)
  return Image.fromarray(small).resize((80, 60), Image.Resampling.BILINEAR)


def encoded(mode, form):
  buffer = io.BytesIO()
  smooth_image().convert(mode).save(buffer, form)
  return buffer.getvalue()


@pytest.mark.parametrize(
  'form, modes',
  [
    ('JPEG', ('RGB', 'L', 'CMYK')),
    ('PNG', ('RGB', 'RGBA', 'L', 'LA', 'P')),
    ('BMP', ('RGB', 'L', 'P', '1')),
    ('GIF', ('RGB', 'L', 'P')),
    ('WEBP', ('RGB', 'RGBA')),
  ],
)
def test_formats_decode_as_pillow_does(form, modes):
  for mode in modes:
    content = encoded(mode, form)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))
    for found in (
      preprocess.decode(tf.constant(content)),
      tf.function(preprocess.decode)(tf.constant(content)),
    ):
      difference = abs(found.numpy().astype(int) - expected)
      # TensorFlow's default JPEG decoder is the fast, less exact one.
      assert difference.max() <= (3 if form == 'JPEG' else 0), (form, mode)


def test_decoded_pixels_of_one_three_and_four_channels():
  pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 4), np.uint8)
  gray = preprocess.decode(tf.constant(pixels[..., :1])).numpy()
  np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, -1))
  for channels in (3, 4):
    found = preprocess.decode(tf.constant(pixels[..., :channels])).numpy()
    color, alpha = np.split(pixels.astype(float), [3], -1)
    mixed = (color * alpha + 255 * (255 - alpha)) / 255
    shown = np.round(mixed) if channels == 4 else color
    np.testing.assert_array_equal(found, shown)


def boxes_of(shape, count, min_area=0.05):
  dataset = tf.data.Dataset.range(count).map(
    lambda i: tf.stack(
      preprocess._random_box(
        tf.constant(shape), tf.stack([tf.constant(3, tf.int64), i]), min_area
      )
    )
  )
  return np.stack(list(dataset.as_numpy_iterator()))


def largest_cdf_distance(a, b):
  """Returns the Kolmogorov–Smirnov statistic."""
  points = np.sort(np.concatenate([a, b]))
  return abs(
    np.searchsorted(np.sort(a), points, 'right') / len(a)
    - np.searchsorted(np.sort(b), points, 'right') / len(b)
  ).max()


@pytest.mark.parametrize('key', ['32x32', '200x300', '375x500', '64x400'])
def test_random_boxes_are_distributed_like_the_reference(key):
  height, width = map(int, key.split('x'))
  expected = reference.arrays()[f'boxes/{key}'].astype(int)
  found = boxes_of((height, width, 3), len(expected))
  limit = 1.95 * (2 / len(expected)) ** 0.5  # p = 0.001 for each quantity
  for quantity in (
    lambda b: b[:, 0],
    lambda b: b[:, 1],
    lambda b: b[:, 2],
    lambda b: b[:, 3],
    lambda b: b[:, 2] * b[:, 3],
    lambda b: b[:, 2] / b[:, 3],
  ):
    assert largest_cdf_distance(quantity(found), quantity(expected)) < limit


def test_a_crop_equals_a_box_of_the_decoded_image():
  """Decoding a crop of a JPEG equals cropping the decoded JPEG."""
  content = jpeg('3_375x500')
  pixels = preprocess.decode(content)
  for i in range(8):
    seed = tf.constant([i, 7], tf.int64)
    top, left, height, width = preprocess._random_box(
      tf.shape(pixels), seed, 0.05
    )
    box = pixels[top : top + height, left : left + width]
    expected = preprocess.resize(box, (24, 40))
    found = preprocess.random_resized_crop(content, (24, 40), seed, 0.05)
    from_pixels = preprocess.random_resized_crop(pixels, (24, 40), seed, 0.05)
    np.testing.assert_allclose(from_pixels, expected, atol=1e-3)
    # At the border of a box, chroma is interpolated without pixels outside.
    assert abs(found - expected).numpy().mean() < 1


def test_a_box_of_a_cmyk_jpeg():
  content = tf.constant(encoded('CMYK', 'JPEG'))
  seed = tf.constant([0, 7], tf.int64)
  found, expected = (
    preprocess.random_resized_crop(image, (24, 40), seed, 0.05)
    for image in (content, preprocess.decode(content))
  )
  np.testing.assert_allclose(found, expected, atol=4)


def test_an_animation_gives_its_first_image():
  frames = [smooth_image(), Image.new('RGB', (80, 60))]
  for form in ('GIF', 'WEBP', 'PNG'):
    buffer = io.BytesIO()
    frames[0].save(
      buffer,
      form,
      save_all=True,
      append_images=frames[1:],
      **({'lossless': True} if form == 'WEBP' else {}),
    )
    found = tf.function(preprocess.decode)(tf.constant(buffer.getvalue()))
    difference = abs(found.numpy().astype(int) - np.asarray(frames[0]))
    assert difference.mean() < (10 if form == 'GIF' else 0.01), form


def test_training_images_depend_only_on_the_seed():
  content = jpeg('1_200x300')

  def image(seed, **settings):
    return preprocess.for_training(
      content,
      (32, 48),
      tf.constant(seed, tf.int64),
      data_settings.Cropping(**settings),
    ).numpy()

  np.testing.assert_array_equal(image([0, 1]), image([0, 1]))
  assert (image([0, 1]) != image([0, 2])).any()
  assert (image([0, 1]) != image([1, 1])).any()
  whole = preprocess.for_evaluation(content, (32, 48)).numpy()
  np.testing.assert_array_equal(image([0, 1], min_area=1.0, flip=False), whole)
  flipped = [
    (image([0, i], min_area=1.0) == whole[:, ::-1]).all() for i in range(60)
  ]
  assert 15 < sum(flipped) < 45


@pytest.mark.parametrize(
  'kind, wide', [('squash', (40, 60)), ('crop', (90, 60))]
)
def test_windows_of_resized_images(kind, wide):
  """Pixels are rows and columns, so each window shows its own place."""
  rows, columns = np.mgrid[:180, :120]
  image = tf.constant(np.stack([rows, columns, rows], -1), tf.uint8)
  cropping = data_settings.Cropping(flip=False, kind=kind, size=40)
  dataset = tf.data.Dataset.range(400).map(
    lambda i: preprocess.for_training(
      image, (32, 48), tf.stack([tf.constant(3, tf.int64), i]), cropping
    )
  )
  expected = preprocess.to_unit_range(preprocess.resize(image, wide)).numpy()
  windows = np.lib.stride_tricks.sliding_window_view(expected, (32, 48, 3))
  windows = windows[:, :, 0]  # [tops, lefts, 32, 48, 3]
  found = set()
  for window in dataset.as_numpy_iterator():
    same = (abs(windows[..., 0, 0, :] - window[0, 0]) < 1e-6).all(-1)
    ((top, left),) = np.argwhere(same)
    np.testing.assert_allclose(windows[top, left], window, atol=1e-6)
    found.add((top, left))
  tops, lefts = (set(x) for x in zip(*found, strict=True))
  assert max(tops) == wide[0] - 32 and max(lefts) == wide[1] - 48
  assert min(tops) == min(lefts) == 0
  assert len(found) > 0.9 * min(400, (wide[0] - 31) * (wide[1] - 47)) * 0.63


def test_crops_are_resized_as_pillow_does():
  image = Image.open(reference.JPEGS / '1_200x300.jpg')
  cropping = data_settings.Cropping(
    min_area=1.0, flip=False, interpolation='bicubic_antialias'
  )
  found = preprocess.for_training(
    *(tf.constant(np.asarray(image)), (64, 48), [0, 1], cropping)
  )
  expected = image.resize((48, 64), Image.Resampling.BICUBIC)
  difference = abs(found * 127.5 + 127.5 - np.asarray(expected, np.float32))
  assert difference.numpy().mean() < 0.5


def test_a_flip_does_not_depend_on_the_crop():
  """Pixel values are columns and rows, which show the crop and the flip."""
  rows, columns = np.mgrid[:64, :64]
  image = tf.constant(np.stack([columns, rows, rows], -1), tf.uint8)
  dataset = (
    tf.data.Dataset.range(1000)
    .map(
      lambda i: preprocess.for_training(
        image,
        (2, 2),
        tf.stack([tf.constant(3, tf.int64), i]),
        data_settings.Cropping(),
      )
    )
    .batch(1000)
  )
  found = next(dataset.as_numpy_iterator()) * 127.5 + 127.5
  (left, right), (top, bottom) = found[:, 0, :, 0].T, found[:, :, 0, 1].T
  flipped = left > right
  assert 450 < flipped.sum() < 550
  width, height = abs(right - left), bottom - top
  for quantity in (np.log(width / height), width * height, left + right, top):
    assert abs(np.corrcoef(flipped, quantity)[0, 1]) < 0.1


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'not an image',
    (reference.JPEGS / '1_200x300.jpg').read_bytes()[:99],
    (reference.JPEGS / '1_200x300.jpg').read_bytes()[:9000],
    encoded('RGB', 'PNG')[:-200],
    encoded('P', 'BMP')[:200],
  ],
)
def test_undecodable_images_fail_the_check(content):
  for function in (image_decoder.decode, image_decoder.check_decodable):
    with pytest.raises(tf.errors.OpError):
      tf.function(function)(tf.constant(content))


@pytest.mark.parametrize('crop', [False, True])
@pytest.mark.parametrize('size, stride', [(64, 1), (224, 8)])
def test_lit_images_equal_the_reference(crop, size, stride):
  expected = reference.arrays()[f'images/lit_crop{int(crop)}_{size}']
  for name, pixels in zip(NAMES, expected, strict=True):
    image = tf.function(preprocess.for_lit)(jpeg(name), size, crop).numpy()
    np.testing.assert_allclose(
      image[::stride, ::stride] * 127.5 + 127.5, pixels, atol=1e-4
    )
