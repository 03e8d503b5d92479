"""All kinds of images give the model the same input as a file."""

import dataclasses
import io
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import tiny_lit
import vit_jax
from vit_jax.data import preprocess
from vit_jax.data.image_files import decoding
from vit_jax.inference import inputs
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings

SIZE = (8, 12)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (21, 30, 4), np.uint8)
RGB = Image.fromarray(PIXELS[..., :3])
RGBA = Image.fromarray(PIXELS)


def with_transparency(image, value):
  image = image.copy()
  image.info['transparency'] = value
  return image


PICTURES = {
  'RGB': RGB,
  'RGBA': RGBA,
  'L': RGB.convert('L'),
  'LA': RGBA.convert('LA'),
  '1': RGB.convert('1'),
  'P': RGB.quantize(17),
  'P of RGBA': RGBA.quantize(17),
  'P with transparency': with_transparency(RGB.quantize(17), 3),
  'RGB with transparency': with_transparency(RGB, (1, 2, 3)),
  'I;16': Image.fromarray(RNG.integers(0, 2**16, (21, 30)).astype(np.uint16)),
}


def png(image):
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


def prepared(images, prepare=preprocess.for_evaluation, size=SIZE, batch=4):
  found, is_single = inputs.read(images, size)
  rows = list(inputs.all_batches(found, size, batch, prepare))
  assert all(len(part) <= batch for part in rows)
  rows = np.concatenate(rows)
  assert rows.dtype == np.float32 and rows.shape[1:] == (*size, 3)
  return rows[0] if is_single else rows


def expected(encoded, prepare=preprocess.for_evaluation, size=SIZE):
  """Returns the model's input for a file, as in an evaluation of a run."""
  dataset = tf.data.Dataset.from_tensors(encoded)
  return next(iter(dataset.map(lambda x: prepare(x, size)))).numpy()


@pytest.mark.parametrize('kind', PICTURES)
def test_a_pil_image_equals_its_png(kind):
  image = PICTURES[kind]
  np.testing.assert_array_equal(prepared(image), expected(png(image)))
  reopened = Image.open(io.BytesIO(png(image)))
  np.testing.assert_array_equal(prepared(reopened), expected(png(image)))


@pytest.mark.parametrize(
  'image',
  [
    RGB.convert('CMYK'),
    RGB.convert('YCbCr'),
    RGB.convert('HSV'),
    RGB.convert('L').convert('I'),
    RGB.convert('L').convert('F'),
    RGB.convert('RGBX'),
  ],
  ids=lambda image: image.mode,
)
def test_other_modes_are_rejected(image):
  with pytest.raises(ValueError, match=f"mode '{image.mode}'.*convert"):
    inputs.read([RGB, image], SIZE)


@pytest.mark.parametrize(
  'pixels',
  [PIXELS, PIXELS[..., :3], PIXELS[..., :1], PIXELS[..., 0]],
  ids=lambda pixels: str(pixels.shape),
)
def test_pixels_equal_their_png(pixels):
  gray = pixels.ndim == 2 or pixels.shape[-1] == 1
  image = Image.fromarray(
    pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
  )
  assert image.mode == {True: 'L', False: image.mode}[gray]
  for array in (pixels, jax.numpy.asarray(pixels), tf.constant(pixels)):
    np.testing.assert_array_equal(prepared(array), expected(png(image)))


def test_a_list_may_mix_all_kinds_and_sizes(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(png(PICTURES['P']))
  ready = RNG.uniform(-1, 1, (*SIZE, 3))
  images = [
    path,
    str(path),
    png(RGB),
    bytearray(png(RGB)),
    RGBA,
    PIXELS[:9, :7, :3],
    ready,
    PIXELS[..., 0],
  ]
  found = prepared(images, batch=3)
  for row, encoded in zip(
    found,
    [
      png(PICTURES['P']),
      png(PICTURES['P']),
      png(RGB),
      png(RGB),
      png(RGBA),
      png(RGB.crop((0, 0, 7, 9))),
      None,
      png(Image.fromarray(PIXELS[..., 0])),
    ],
    strict=True,
  ):
    if encoded:
      np.testing.assert_array_equal(row, expected(encoded))
  np.testing.assert_array_equal(found[6], ready.astype(np.float32))
  np.testing.assert_array_equal(prepared(tuple(images)), found)
  np.testing.assert_array_equal(prepared(np.array([str(path)])), found[:1])


def test_arrays_of_several_images():
  batch = RNG.integers(0, 256, (3, 10, 9, 3), np.uint8)
  np.testing.assert_array_equal(prepared(batch), prepared(list(batch)))
  floats = RNG.uniform(-1, 1, (3, *SIZE, 3)).astype(np.float32)
  for images in (floats, list(floats), jax.numpy.asarray(floats)):
    np.testing.assert_array_equal(prepared(images), floats)
  np.testing.assert_array_equal(prepared(floats[0]), floats[0])
  for low, high in ((0, 1), (0, 255)):
    scaled = (floats + 1) / 2 * (high - low) + low
    found, is_single = inputs.read(scaled, SIZE, (low, high))
    assert not is_single
    np.testing.assert_allclose(found, floats, atol=1e-6)


@pytest.mark.parametrize(
  'images, message',
  [
    ('nowhere.jpg', 'nowhere.jpg: there is no such image file'),
    ([RGB, pathlib.Path('nowhere.jpg')], 'nowhere.jpg: there is no'),
    ({'a': RGB}, 'images are a dict. Use one image or a list'),
    ([[1, 2], [3, 4]], r'images\[0\] is a list. Use a path'),
    (None, 'images are a NoneType'),
    (np.zeros((2, 9, 12, 3)), r'\[2, 9, 12, 3\].* 8 x 12 pixels'),
    ([RGB, np.zeros((9, 12, 3))], r'images\[1\] .*\[1, 9, 12, 3\]'),
    (np.zeros((8, 12, 3), int), 'dtype int64. Use uint8 .* or floats'),
    (np.zeros((2, 8, 12, 3), bool), 'dtype bool'),
    (np.zeros((3, 8, 12)), r'\[B, C, H, W\]'),
    (np.zeros((3, 32, 32), np.uint8), r'uint8 .*\[3, 32, 32\]. An image must'),
    (np.zeros((8,), np.uint8), r'uint8 .*\[8\]. An image must'),
    (np.zeros((2, 3, 32, 32), np.uint8), r'images\[0\]: uint8 .*\[3, 32, 32\]'),
    (np.zeros((0, 3, 3), np.uint8), r'uint8 .*\[0, 3, 3\]'),
    (RNG.uniform(0, 1, (2, *SIZE, 3)), r'in 0…1, .*pixel_range=\(-1, 1\)'),
    ([RGB, np.zeros((*SIZE, 4))], r'images\[1\] has 4 channels.* must have 3'),
    (RNG.uniform(0, 255, (2, *SIZE, 3)), r'in \[-1, 1\]'),
  ],
)
def test_what_is_no_image(images, message):
  with pytest.raises(ValueError, match=message):
    inputs.read(images, SIZE)


def test_black_images():
  """Bytes of zeros are not lost."""
  black = np.zeros((5, 4, 3), np.uint8)
  assert (prepared([black, Image.fromarray(black)]) == -1).all()


def test_images_that_cannot_be_decoded():
  truncated = Image.open(io.BytesIO(png(RGB)[:-600]))
  for bad in (b'no image', truncated):
    images = [RGB] * 5 + [bad]
    for batch in (2, 3, 8):
      with pytest.raises(ValueError, match=r'1 of 6 images .*: images\[5\]'):
        prepared(images, batch=batch)
  with pytest.raises(ValueError, match=r'2 of 2 .*: images\[0\], images\[1\]'):
    prepared([b'', b'GIF89a'])


def test_one_graph_serves_all_image_sizes():
  prepared(list(PIXELS[None, :, :, 0]))
  function = inputs.make_read_fn(
    preprocess.for_evaluation, SIZE, decoding.OWN_FILES
  )
  for side in range(1, 9):
    prepared(PIXELS[:side, : 2 * side])
    prepared([PIXELS[:side], Image.fromarray(PIXELS[:, :side])])
  assert function.experimental_get_tracing_count() == 1


# --- models ------------------------------------------------------------------


@pytest.fixture(name='model', scope='module')
def fixture_model(finished_run):
  return vit_jax.load(finished_run.workdir)


def test_images_are_decoded_as_in_training(model, tmp_path):
  (tmp_path / 'a.png').write_bytes(png(RGBA))
  exif = Image.Exif()
  exif[0x0112] = 6
  RGB.save(tmp_path / 'b.png', exif=exif)
  black = np.asarray(RGBA).astype(float)
  black = np.round(black[..., :3] * black[..., 3:] / 255).astype(np.uint8)
  for settings, first, second in (
    (('auto', 'black'), black, RGB.rotate(-90, expand=True)),
    (('ignore', 'ignore'), np.asarray(RGBA)[..., :3], np.asarray(RGB)),
  ):
    other = dataclasses.replace(model, exif=settings[0], background=settings[1])
    stored = other.description.to_json()
    assert (stored['vit_jax']['exif'], stored['vit_jax']['background']) == (
      settings
    )
    expected = model.logits([first, second])
    images = [tmp_path / 'a.png', tmp_path / 'b.png']
    np.testing.assert_array_equal(other.logits(images), expected)
    opened = [Image.open(path) for path in images]
    np.testing.assert_array_equal(other.logits(opened), expected)
    np.testing.assert_array_equal(other.logits(RGBA), expected[0])
    answers = model.classify([first, second])
    assert other.classify(images) == answers


def test_one_image_has_one_answer(model, finished_run):
  path = finished_run.photos / 'test/moss/0.png'
  image = Image.open(path)
  (answer,) = model.classify([path])
  assert list(answer) and set(answer) == set(model.class_names)
  for one in (str(path), path.read_bytes(), image, np.asarray(image)):
    assert model.classify(one) == answer
    np.testing.assert_array_equal(model.logits(one), model.logits([path])[0])
    assert model.features(one).shape == (12,)
  floats = expected(path.read_bytes())
  assert model.classify(floats) == answer
  assert (
    model.classify([floats, image], top=1)
    == [dict([next(iter(answer.items()))])] * 2
  )
  assert model.classify([]) == []


def test_logits_in_batches(model, finished_run):
  paths = sorted(finished_run.photos.glob('test/*/*.png'))[:7]
  whole = model.logits(paths)
  assert whole.shape == (7, 3)
  np.testing.assert_allclose(model.logits(paths, batch=2), whole, atol=1e-6)
  np.testing.assert_allclose(
    model.logits([Image.open(path) for path in paths], batch=3),
    whole,
    atol=1e-6,
  )


def test_features_of_blocks(model, finished_run):
  path = finished_run.photos / 'test/moss/0.png'
  found = model.features([path, path], blocks=[0, -1])
  assert list(found) == [0, -1] and model.model.num_layers == 1
  assert found[0].grid.shape == (2, 2, 3, 12)
  assert found[0].class_token is None and found[0].registers is None
  np.testing.assert_array_equal(found[0].grid, found[-1].grid)
  one = model.features(path, blocks=[0])[0].grid
  np.testing.assert_allclose(one, found[0].grid[0], atol=1e-6)
  with pytest.raises(ValueError, match='no block 1. The model has 1 blocks'):
    model.features(path, blocks=[1])


def test_lit_takes_the_same_images(tmp_path, monkeypatch):
  lit = lit_embeddings.load(*tiny_lit.save(monkeypatch, 'bert', tmp_path))
  path = tmp_path / 'a.png'
  path.write_bytes(png(RGB))
  floats = expected(png(RGB), lit_embeddings.prepare, (224, 224))
  assert len(np.unique(floats)) <= 256  # integer pixels, unlike other models
  embedding = lit_embeddings.embed_images(lit, floats[None])
  for one in (path, png(RGB), RGB, PIXELS[..., :3], floats):
    z = lit_embeddings.embed_images(lit, one)
    np.testing.assert_array_equal(z, embedding[0])
  model = lit_classifier.make_trained_model(lit, ['cat', 'dog'])
  (answer,) = model.classify(floats[None])
  assert model.classify(RGB) == model.classify(str(path)) == answer
  np.testing.assert_allclose(model.features(path), embedding[0], atol=1e-6)
  outputs = model.features(path, blocks=[0])
  assert outputs[0].grid.shape == (14, 14, 10)
