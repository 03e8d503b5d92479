"""An .npz file of encoded images as a dataset."""

import io

import numpy as np
from PIL import Image
import pytest

from tests.digits_run import make_config
from vit_jax import base_config
from vit_jax.data.given import encoded_images
from vit_jax.data.given import npz_file

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
LABELS = np.arange(6) % 3


def encoded(pixels, form='PNG'):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


CONTENT, OFFSETS = encoded_images.join([encoded(x) for x in PIXELS])
SMALL, SMALL_OFFSETS = encoded_images.join(
  [encoded(PIXELS[0]), encoded(PIXELS[1, :7])]
)
DAMAGED, DAMAGED_OFFSETS = encoded_images.join(
  [encoded(PIXELS[0]), encoded(PIXELS[1])[:90]]
)


def load(tmp_path, **arrays):
  path = tmp_path / 'a.npz'
  np.savez(path, **arrays)
  return npz_file.load(
    base_config.data_settings(make_config(dataset=str(path)))
  )


def test_files_are_decoded_in_their_order(tmp_path):
  files = [encoded(PIXELS[i], form) for i, form in ((4, 'JPEG'), (1, 'BMP'))]
  content, offsets = encoded_images.join(files)
  given = load(
    tmp_path,
    image=CONTENT,
    image_offsets=OFFSETS,
    label=LABELS,
    test_image=content,
    test_image_offsets=offsets.astype(np.int32),
    test_label=LABELS[:2],
  )
  found = {split: x['image'] for split, x in given.splits.items()}
  np.testing.assert_array_equal(found['train'], PIXELS)
  np.testing.assert_array_equal(found['test'][1], PIXELS[1])
  with Image.open(io.BytesIO(files[0])) as image:
    np.testing.assert_array_equal(found['test'][0], np.asarray(image))


@pytest.mark.parametrize(
  'arrays, message',
  [
    ({'image_offsets': OFFSETS[:-1]}, 'rise from 0 to'),
    ({'image_offsets': OFFSETS * 1.0}, 'image_offsets must be integers'),
    ({'image_offsets': OFFSETS[[0, 2, 1, 3, 4, 5, 6]]}, 'must be integers'),
    ({'image_offsets': OFFSETS[1:]}, 'must be integers .N . 1. that rise'),
    ({'image': PIXELS}, 'uint8 .*6, 8, 10, 3.*must have the bytes'),
    ({'label': LABELS[:5]}, '6 rows .image., 5 rows'),
    ({'label': LABELS + 1}, 'Give class_names'),
    (
      {'image': SMALL, 'image_offsets': SMALL_OFFSETS},
      "image 1 has 7 x 10 pixels, .* 8 x 10.*data_on='host'",
    ),
    (
      {'image': DAMAGED, 'image_offsets': DAMAGED_OFFSETS},
      'image: image 1 of 2 cannot be decoded ',
    ),
    ({'test_image_offsets': OFFSETS}, 'lacks test_image'),
  ],
)
def test_bad_files_are_refused(arrays, message, tmp_path):
  full = dict(image=CONTENT, image_offsets=OFFSETS, label=LABELS)
  with pytest.raises(ValueError, match=f'a.npz.*{message}'):
    load(tmp_path, **{**full, **arrays})


def test_encoded_images_need_offsets(tmp_path):
  with pytest.raises(ValueError, match='images must be .N, H, W, C.'):
    load(tmp_path, image=CONTENT, label=LABELS)
