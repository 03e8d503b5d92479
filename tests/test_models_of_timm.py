"""Every architecture of timm is equal, or refused: the table and timm agree."""

import re

import pytest

from tests import ROOT
from vit_jax.checkpoint.other_libraries import timm_table

PAGE = (ROOT / 'docs' / 'models_of_timm.md').read_text('utf-8')
ROWS = re.findall(r'^\| `(\w+)` \| ([^|]+) \|', PAGE, re.M)
PREFIXES = ('beit', 'deit', 'eva', 'flexivit', 'mixer_', 'vit_')


def test_the_table_has_every_architecture_and_nothing_wrong():
  names = [name for name in timm_table.names() if name.startswith(PREFIXES)]
  assert [name for name, _ in ROWS] == names
  equal = [name for name, result in ROWS if result == 'equal']
  others = [result for _, result in ROWS if result != 'equal']
  for result in others:
    assert result.startswith(('refused: ', 'not compared: ')), result
  summary = re.search(r'\*\*(\d+) architectures: (\d+) equal', PAGE)
  assert summary and summary.groups() == (str(len(ROWS)), str(len(equal)))
  assert len(equal) >= 230


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize('name, expected', ROWS)
def test_the_table_agrees_with_timm(name, expected):
  pytest.importorskip('timm', reason="needs pip install -e '.[interop]'")
  from scripts import check_timm

  row = check_timm.compare(name)
  assert row['result'] in ('equal', 'refused', 'large'), row
  assert expected.partition(':')[0] == {'large': 'not compared'}.get(
    row['result'], row['result']
  )


@pytest.mark.interop
@pytest.mark.parametrize(
  'mode, fraction, interpolation, size',
  [
    ('center', 0.875, 'bicubic', (112, 112)),
    ('center', 0.9, 'bicubic', (112, 96)),
    ('center', 0.95, 'bilinear', (112, 112)),
    ('squash', 0.9, 'lanczos', (112, 112)),
  ],
)
def test_images_are_prepared_as_by_timm(mode, fraction, interpolation, size):
  """At most one gray level on average, with timm's own transform."""
  reason = "needs pip install -e '.[interop]'"
  data = pytest.importorskip('timm.data', reason=reason)
  if not hasattr(
    pytest.importorskip('torchvision', reason=reason), '__version__'
  ):
    pytest.skip('torchvision is not installed')
  import numpy as np
  from PIL import Image

  from tests.data import test_preparation_of_timm as here
  from vit_jax.data import data_settings

  pixels = here.photo(301, 453)
  transform = data.create_transform(
    (3, *size),
    interpolation=interpolation,
    mean=(0, 0, 0),
    std=(1 / 255,) * 3,
    crop_pct=fraction,
    crop_mode=mode,
  )
  expected = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
  resizing = data_settings.Resizing(
    'squash' if mode == 'squash' else 'crop',
    fraction,
    f'{interpolation}_antialias',
  )
  found = here.prepared(pixels, size, resizing)
  assert np.abs(found - expected).mean() < 0.3
