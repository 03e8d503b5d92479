"""All kinds of image files give the right pixels, or the exact message."""

import dataclasses
import io
import json
import os
import struct

import numpy as np
from PIL import Image
from PIL import ImageOps
import pillow_heif
import pytest

from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.data import data_settings
from vit_jax.data import input_pipeline
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf
from vit_jax.data.folders import image_folder
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_checks
from vit_jax.data.image_files import image_decoder
from vit_jax.data.image_files import image_kinds
from vit_jax.data.image_files import pillow_decoder
from vit_jax.run import run_files

HEIGHT, WIDTH = 24, 40
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
PIXELS = np.stack(
  [_COLUMNS * 6, _ROWS * 10, 255 - _COLUMNS * 3 - _ROWS * 5], -1
).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
GRAY = Image.fromarray(PIXELS[..., 0])
WIDE = PIXELS[..., 0].astype(np.uint16) * 256 + 200  # rounds up to the next
ALPHA = np.where(_COLUMNS < 9, 0, 255 - _ROWS).astype(np.uint8)
RGBA = Image.fromarray(np.dstack([PIXELS, ALPHA]))


def saved(image, form, **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


@pytest.fixture(name='decode', scope='module')
def fixture_decode():
  """Decodes bytes in one graph for each `Decoding`."""
  graphs = {}

  def decode(content, how=decoding.OWN_FILES):
    if how not in graphs:
      graphs[how] = tf.function(
        lambda x: image_decoder.decode(x, how),
        input_signature=[tf.TensorSpec([], tf.string)],
      )
    return graphs[how](tf.constant(content)).numpy()

  return decode


def over(color, pixels=PIXELS, alpha=ALPHA):
  """Returns RGB pixels over a background, computed with exact fractions."""
  alpha = alpha[..., None].astype(float)
  return np.floor((pixels * alpha + color * (255 - alpha)) / 255 + 0.5)


def ppm_16(values):
  height, width, channels = values.shape
  magic = {1: 'P5', 3: 'P6'}[channels]
  header = f'{magic}\n{width} {height}\n65535\n'.encode()
  return header + values.astype('>u2').tobytes()


def small_first_frame():
  """Returns a GIF of 40 × 24 pixels whose first frame has 10 × 10 pixels."""
  gif = bytearray(saved(Image.new('RGB', (10, 10), (255, 0, 0)), 'GIF'))
  gif[6:10] = struct.pack('<HH', WIDTH, HEIGHT)
  return bytes(gif)


GRAYS = np.repeat(PIXELS[..., :1], 3, -1)
BITS = GRAY.point(lambda x: 255 * (x > 99), '1')
PALETTE = RGB.quantize(64)
LOSSLESS = {
  'png': (saved(RGB, 'PNG'), PIXELS),
  'gray png': (saved(GRAY, 'PNG'), GRAYS),
  'palette png': (saved(PALETTE, 'PNG'), PALETTE.convert('RGB')),
  '1 bit png': (saved(BITS, 'PNG'), BITS.convert('RGB')),
  '16 bit png': (saved(Image.fromarray(WIDE), 'PNG'), GRAYS),
  'rgba png': (saved(RGBA, 'PNG'), over(255)),
  'gray+alpha png': (saved(RGBA.convert('LA'), 'PNG'), None),
  'png with a transparent color': (
    saved(GRAY, 'PNG', transparency=12),
    np.where(GRAYS == 12, 255, GRAYS),
  ),
  'transparent palette png': (saved(PALETTE, 'PNG', transparency=3), None),
  'tiff': (saved(RGB, 'TIFF'), PIXELS),
  'tiff lzw': (saved(RGB, 'TIFF', compression='tiff_lzw'), PIXELS),
  'rgba tiff': (saved(RGBA, 'TIFF'), over(255)),
  '16 bit tiff': (saved(Image.fromarray(WIDE), 'TIFF'), GRAYS),
  'float tiff': (
    saved(Image.fromarray(PIXELS[..., 0] / np.float32(255)), 'TIFF'),
    GRAYS,
  ),
  'cmyk tiff': (saved(RGB.convert('CMYK'), 'TIFF'), PIXELS),
  'webp': (saved(RGB, 'WEBP', lossless=True), PIXELS),
  'rgba webp': (saved(RGBA, 'WEBP', lossless=True, exact=True), over(255)),
  'gif': (saved(PALETTE, 'GIF'), PALETTE.convert('RGB')),
  'transparent gif': (saved(PALETTE, 'GIF', transparency=3), None),
  'bmp': (saved(RGB, 'BMP'), PIXELS),
  'palette bmp': (saved(PALETTE, 'BMP'), PALETTE.convert('RGB')),
  'ppm': (saved(RGB, 'PPM'), PIXELS),
  'pgm': (saved(GRAY, 'PPM'), GRAYS),
  'pbm': (saved(BITS, 'PPM'), BITS.convert('RGB')),
  '16 bit pgm': (ppm_16(WIDE[..., None]), GRAYS),
  '16 bit ppm': (ppm_16(PIXELS.astype(np.uint16) * 256 + 200), PIXELS),
  'ico': (saved(RGB, 'ICO', sizes=[(WIDTH, HEIGHT)]), PIXELS),
  'jpeg 2000': (saved(RGB, 'JPEG2000', irreversible=False), PIXELS),
  '16 bit jpeg 2000': (saved(Image.fromarray(WIDE), 'JPEG2000'), GRAYS),
}


@pytest.mark.parametrize('kind', LOSSLESS)
def test_a_lossless_file_gives_the_pixels_of_its_png(decode, kind):
  content, pixels = LOSSLESS[kind]
  if pixels is None:
    stored = np.asarray(Image.open(io.BytesIO(content)).convert('RGBA'))
    pixels = over(255, stored[..., :3], stored[..., 3])
    assert (pixels != stored[..., :3]).any()
  found = decode(content)
  np.testing.assert_array_equal(found, np.asarray(pixels))
  # A PIL object follows the same rules as its file.
  if 'ppm' not in kind:
    image = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(
      pillow_decoder.to_rgb(image, decoding.OWN_FILES), found
    )


def test_a_first_frame_that_is_smaller_than_its_gif(decode):
  found = decode(small_first_frame())
  assert found.shape == (HEIGHT, WIDTH, 3)
  assert (found[:10, :10] == (255, 0, 0)).all()


@pytest.mark.parametrize('animated', ['GIF', 'WEBP', 'PNG', 'TIFF', 'AVIF'])
def test_an_animation_gives_its_first_image(decode, animated):
  others = [Image.new('RGB', RGB.size)]
  content = saved(RGB, animated, save_all=True, append_images=others)
  difference = abs(decode(content).astype(int) - PIXELS)
  assert difference.mean() < 10


LOSSY = {
  'jpeg': saved(RGB, 'JPEG', quality=95),
  'gray jpeg': saved(GRAY, 'JPEG', quality=95),
  'cmyk jpeg': saved(RGB.convert('CMYK'), 'JPEG', quality=95),
  'webp': saved(RGB, 'WEBP', quality=95),
  'webp with alpha': saved(RGBA, 'WEBP', quality=95),
  'avif': saved(RGB, 'AVIF', quality=95),
  'avif with alpha': saved(RGBA, 'AVIF', quality=95),
  'mpo': saved(RGB, 'MPO', save_all=True, append_images=[RGB], quality=95),
  'jpeg 2000': saved(RGB, 'JPEG2000', irreversible=True),
}


@pytest.mark.parametrize('kind', LOSSY)
def test_a_lossy_file_gives_similar_pixels(decode, kind):
  pixels = over(255) if 'alpha' in kind else PIXELS
  pixels = GRAYS if 'gray' in kind else pixels
  difference = abs(decode(LOSSY[kind]).astype(float) - pixels)
  assert difference.mean() < 3


@pytest.mark.parametrize('form', ['PNG', 'WEBP', 'TIFF'])
def test_the_background_is_a_setting(decode, form):
  content = saved(RGBA, form, **({'lossless': True} if form == 'WEBP' else {}))
  for setting, color in (('black', 0), ('#102030', (16, 32, 48))):
    how = decoding.resolve(background=setting)
    np.testing.assert_array_equal(decode(content, how), over(np.array(color)))
  array = np.asarray(RGBA)
  stored = np.asarray(Image.open(io.BytesIO(content)))[..., :3]
  np.testing.assert_array_equal(decode(content, decoding.STORED), stored)
  for dtype in (np.uint8, np.float32):
    pixels = array.astype(dtype)
    for how in (decoding.OWN_FILES, decoding.STORED):
      np.testing.assert_array_equal(
        image_decoder.decode(tf.constant(pixels), how),
        decoding.to_rgb(pixels, how.background),
      )


def with_orientation(orientation, form):
  """Returns a file whose upright picture is `RGB`."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  inverse = {**pillow_decoder._UPRIGHT, 6: 2, 8: 4}.get(orientation)
  image = RGB if inverse is None else RGB.transpose(inverse)
  options = {
    'JPEG': {'quality': 95, 'subsampling': 0},
    'WEBP': {'lossless': True},
    'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
  }
  return saved(image, form, exif=exif, **options.get(form, {}))


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_images_are_turned_upright(decode, form):
  limit = {'JPEG': 6, 'AVIF': 6}.get(form, 0)
  for orientation in range(1, 9):
    content = with_orientation(orientation, form)
    found = decode(content)
    assert found.shape == PIXELS.shape, orientation
    assert abs(found.astype(int) - PIXELS).max() <= limit, orientation
    image = pillow_decoder.to_rgb(
      Image.open(io.BytesIO(content)), decoding.OWN_FILES
    )
    assert abs(image.astype(int) - PIXELS).max() <= limit, orientation
    lying = decode(content, decoding.STORED)
    assert lying.shape[0] == (WIDTH if orientation >= 5 else HEIGHT)
    if orientation > 1:
      assert lying.shape != found.shape or (lying != found).any()


def test_big_endian_exif_and_segments_before_it(decode):
  stored = with_orientation(6, 'JPEG')
  start = stored.index(b'Exif\0\0') + 6
  assert stored[start : start + 2] == b'MM'
  little = (
    b'II*\0'
    + struct.pack('<I', 8)
    + struct.pack('<HHHIHHI', 1, 274, 3, 1, 6, 0, 0)
  )
  size = struct.unpack('>H', stored[start - 8 : start - 6])[0]
  after = stored[start - 8 + size :]
  segment = struct.pack('>H', 8 + len(little)) + b'Exif\0\0' + little
  other = b'\xff\xed' + struct.pack('>H', 70) + b'x' * 68
  content = b'\xff\xd8' + other + b'\xff\xe1' + segment + after
  np.testing.assert_array_equal(decode(content), decode(stored))
  for damaged in (
    content.replace(b'II*\0', b'II*\1'),
    content.replace(b'II*\0' + struct.pack('<I', 8), b'II*\0' + b'\xff' * 4),
  ):
    assert decode(damaged).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize('orientation', [1, 6])
def test_heic_files_are_decoded_upright(decode, orientation):
  pillow_heif.register_heif_opener()
  smooth = RGB.resize((64, 48), Image.Resampling.BICUBIC)
  exif = Image.Exif()
  exif[0x0112] = orientation
  content = saved(smooth, 'HEIF', quality=95, exif=exif.tobytes())
  assert image_kinds.of_header(content[: image_kinds.HEADER_BYTES]) == 'HEIC'
  upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
  found = decode(content)
  np.testing.assert_array_equal(found, upright)
  expected = np.rot90(smooth, {1: 0, 6: -1}[orientation])
  assert found.shape == expected.shape
  assert np.abs(found.astype(float) - expected).mean() < 4


def test_crops_of_rotated_jpegs_are_crops_of_the_upright_picture(decode):
  crop = tf.function(
    lambda image, seed: preprocess.random_resized_crop(
      image, (16, 16), seed, 0.05
    )
  )
  for orientation in range(1, 9):
    content = with_orientation(orientation, 'JPEG')
    upright = tf.constant(decode(content))
    for number in range(4):
      seed = tf.constant([number, orientation], tf.int64)
      np.testing.assert_array_equal(
        crop(tf.constant(content), seed), crop(upright, seed)
      )


# --- files that are not decoded -----------------------------------------------


def huge_jpeg():
  content = bytearray(saved(RGB, 'JPEG'))
  start = content.index(b'\xff\xc0') + 5
  content[start : start + 4] = struct.pack('>HH', 20000, 20000)
  return bytes(content)


def huge(form):
  return saved(Image.new('1', (20000, 20000)), form)


BAD = {
  'empty.jpg': (lambda: b'', 'empty'),
  'text.png': (lambda: b'no image', 'not an image'),
  'cut.jpg': (lambda: saved(RGB, 'JPEG')[:-300], 'truncated'),
  'cut.png': (lambda: saved(RGB, 'PNG')[:-60], 'truncated'),
  'cut.tif': (lambda: saved(RGB, 'TIFF')[:-600], 'truncated'),
  'cut.ppm': (lambda: ppm_16(WIDE[..., None].repeat(3, 2))[:-9], 'truncated'),
  'huge.jpg': (huge_jpeg, pillow_decoder.TOO_LARGE),
  'huge.tif': (
    lambda: saved(Image.new('1', (20000, 20000)), 'TIFF', compression='group4'),
    pillow_decoder.TOO_LARGE,
  ),
  'float.tif': (
    lambda: saved(Image.fromarray(PIXELS[..., 0] * np.float32(1)), 'TIFF'),
    'float pixels outside of 0…1 (convert the image to 8 or 16 bits)',
  ),
  'int.tif': (
    lambda: saved(Image.fromarray(PIXELS[..., 0].astype(np.int32)), 'TIFF'),
    "pixels of the type 'I', which have no unique conversion to RGB (convert "
    'the image to 8 or 16 bits)',
  ),
  'start.jpg': (lambda: b'\xff\xd8\xff123', 'truncated'),
  'drawing.jpg': (
    lambda: b'8BPS' + b'\0' * 99,
    'of kind Photoshop file, which is not read (convert it to PNG or JPEG)',
  ),
  'phone.jpg': (
    lambda: b'\0\0\0\x18ftypheic' + b'\0' * 99,
    'of kind HEIC, which is not read (install the package that reads it: '
    "pip install 'vit_jax[heic]')",
  ),
}


def test_each_undecodable_file_has_its_reason(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(image_kinds, 'reads_heic', lambda: False)
  folder = tmp_path / 'photos'
  folder.mkdir()
  good = {'a.jpg': LOSSY['jpeg'], 'b.TIFF': LOSSLESS['tiff'][0]}
  contents = {name: make() for name, (make, _) in BAD.items()}
  for name, content in (good | contents).items():
    (folder / name).write_bytes(content)
  paths = image_folder.images_below(str(folder))
  assert len(paths) == len(good) + len(BAD)
  found = image_checks.check(paths, str(folder), 1).undecodable
  assert {os.path.basename(p): reason for p, reason in found.items()} == {
    name: reason for name, (_, reason) in BAD.items()
  }
  shown = capfd.readouterr().err
  names = [str(folder / f'cut.{x}') for x in ('jpg', 'png', 'ppm')]
  assert f'5 truncated: {", ".join(names)}, …' in shown
  # libjpeg writes lines of its own, which have no file name.
  assert len([x for x in shown.splitlines() if 'decoded' in x]) == 1, shown


def test_files_of_a_folder_are_counted_by_kind(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(image_kinds, 'reads_heic', lambda: False)
  read = {
    *('a.JPG', 'b.jfif', 'c.Tif', 'd.AVIF', 'e.jp2', 'f.webp', 'g.mpo'),
    *('h.ico', 'i.pgm', 'j.JPE', 'k'),
  }
  unread = {'l.HEIC', 'm.mov', 'n.MOV', 'o.mp4', 'p.mkv', 'q.cr2', 'r.psd', 's'}
  others = {'.DS_Store', 'Thumbs.db', 't.txt', 'u.csv', '._a.jpg', 'README'}
  for name in read | unread | others:
    (tmp_path / name).write_bytes(b'x')
  (tmp_path / 'k').write_bytes(LOSSLESS['png'][0])
  (tmp_path / 's').write_bytes(b'%PDF-1.4')
  skipped = []
  found = image_folder.images_below(str(tmp_path), unread=skipped)
  assert {os.path.basename(path) for path in found} == read
  assert {os.path.basename(path) for path in skipped} == unread
  image_folder.warn_unread(skipped)
  shown = capsys.readouterr().err
  examples = ', '.join(str(tmp_path / name) for name in ('m.mov', 'n.MOV'))
  assert f'4 of kind video (extract single images): {examples}, ' in shown
  assert '1 of kind HEIC (install the package that reads it: pip inst' in shown
  assert '1 of kind RAW photo' in shown and '1 of kind PDF' in shown


@pytest.mark.parametrize('own_files', [True, False])
def test_settings(own_files):
  expected = decoding.OWN_FILES if own_files else decoding.STORED
  assert decoding.resolve(own_files=own_files) == expected
  assert decoding.resolve('ignore', 'ignore', own_files) == decoding.STORED
  assert decoding.resolve('apply', 'white', own_files) == decoding.OWN_FILES
  for wrong in ({'exif': 'yes'}, {'background': 'red'}, {'background': '#12'}):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}=.* is not one'):
      decoding.resolve(**wrong)


@pytest.mark.parametrize(
  'exif, background', [('auto', 'auto'), ('ignore',) * 2]
)
def test_folders_are_decoded_as_the_settings_say(
  tmp_path, monkeypatch, decode, exif, background
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  contents = [
    *(with_orientation(6, form) for form in ('JPEG', 'PNG', 'TIFF')),
    *(saved(RGBA, form) for form in ('PNG', 'TIFF')),
  ]
  for part in ('train', 'test'):
    for name in 'ab':
      folder = tmp_path / 'photos' / part / name
      folder.mkdir(parents=True)
      for i, content in enumerate(contents):
        (folder / f'{i}').write_bytes(content + bytes([part == 'test']))
  settings = data_settings.DataSettings(
    str(tmp_path / 'photos'),
    (12, 20),
    batch=10,
    batch_eval=10,
    cropping=data_settings.Cropping(min_area=1, flip=False),
    exif=exif,
    background=background,
  )
  data = input_pipeline.get_datasets(settings)
  how = decoding.resolve(exif, background)
  assert data.decoding == how
  expected = np.stack(
    [preprocess.for_evaluation(decode(x, how), (12, 20)) for x in contents]
  )
  found = next(data.evaluate('test'))['image']
  np.testing.assert_array_equal(found, np.concatenate([expected] * 2))
  trained = next(data.train())['image']
  assert sorted(map(np.sum, trained)) == sorted(map(np.sum, found))
  stored = dataclasses.replace(data.sources['test'], own_files=False)
  data = dataclasses.replace(data, sources={'test': stored})
  assert data.decoding == decoding.STORED


def test_a_run_of_an_earlier_version_keeps_its_pixels(tmp_path):
  config = base_config.get_config()
  stored = base_config.flatten(config)
  del stored['pp.exif'], stored['pp.background']
  for dataset, setting in (('cifar10', 'auto'), (str(tmp_path), 'ignore')):
    config.dataset = stored['dataset'] = dataset
    (tmp_path / 'config.json').write_text(json.dumps(stored))
    if setting == 'ignore':
      with pytest.raises(ValueError, match="pp.exif='ignore' in the folder"):
        run_files.check_config(str(tmp_path), config, 1)
    config.pp.exif = config.pp.background = setting
    run_files.check_config(str(tmp_path), config, 1)
  assert metadata.of_run(str(tmp_path)).exif == 'ignore'
