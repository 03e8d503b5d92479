"""The HTML of a report: valid, escaped, without references to the network."""

import html.parser

import numpy as np
import pytest

from tests.report import test_numbers
from vit_jax.report import numbers
from vit_jax.report import page
from vit_jax.report import sections

_WITHOUT_END = {'meta', 'img', 'br', 'link', 'hr'}


class Reader(html.parser.HTMLParser):
  """Checks that every tag is closed; collects texts and references."""

  def __init__(self, text):
    super().__init__()
    self.open, self.texts, self.references, self.tags = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.references += [v for k, v in attrs if k in ('src', 'href')]
    assert not any(name.startswith('on') for name, _ in attrs)
    if tag not in _WITHOUT_END:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data.strip())


def check(text):
  """Returns the `Reader` of a page, after the checks of every report."""
  reader = Reader(text)
  assert not any('http' in reference for reference in reader.references)
  assert all(x.startswith('data:image/') for x in reader.references)
  assert not {'script', 'link', 'iframe'} & set(reader.tags)
  assert len(text.encode()) < 5e6
  return reader


def make_page(outputs, names, shape=(9, 14, 3)):
  """Returns the parts of a page that show a classifier."""
  found = numbers.of_classes(outputs, names)
  rng = np.random.default_rng(1)
  images = {
    i: rng.uniform(-1, 1, shape).astype(np.float32)
    for i in sections.indices(found)
  }
  record = {'metrics': [], 'config': {}}
  parts = [
    sections.results(record, found),
    sections.classes(found),
    sections.confusion(found, names, images),
    sections.calibration(found),
    sections.examples('Mistakes', found['mistakes'], images, images),
    sections.examples('Least sure', found['least_sure'], images, {}, 'none'),
  ]
  return page.document('run <1>', parts)


@pytest.mark.parametrize('shape', [(9, 14, 3), (30, 8, 1), (200, 300, 3)])
def test_class_names_survive(shape):
  names = ['<b>bold', '"quoted" & \'so\'', 'قطة', 'a$b_{c', 'x' * 80]
  reader = check(make_page(test_numbers.random_outputs(60, 5), names, shape))
  for name in names:
    assert name in reader.texts
  assert 'run <1>' in reader.texts
  assert 'b' not in reader.tags


def test_a_thousand_classes():
  names = [f'class number {i}' for i in range(1000)]
  outputs = test_numbers.random_outputs(5000, 1000)
  reader = check(make_page(outputs, names, (224, 224, 3)))
  assert 'Most frequent confusions' in reader.texts


@pytest.mark.parametrize('num_classes', [1, 3, 41])
def test_no_mistakes(num_classes):
  labels = np.arange(82) % num_classes
  outputs = test_numbers.outputs_of(labels, np.eye(num_classes)[labels])
  names = [f'class {i}' for i in range(num_classes)]
  reader = check(make_page(outputs, names))
  assert '100.00%' in reader.texts
  assert not {'Mistakes', 'Most frequent confusions'} & set(reader.texts)


def test_tables():
  text = page.table(['a', 'b'], [[1, '<'], [None, 'x'], [2345, True]])
  assert Reader(text).texts.count('2,345') == 1
  assert '<td class="number" dir="auto">–</td>' in text


def test_thumbnails_are_small_and_keep_their_shape():
  import base64
  import io

  from PIL import Image

  for shape, size in (
    ((300, 600, 3), (128, 64)),
    ((8, 4, 1), (48, 96)),
    ((100, 90, 4), (90, 100)),
  ):
    text = page.thumbnail(np.zeros(shape), 'x')
    data = base64.b64decode(text.partition('base64,')[2].rstrip('">'))
    assert Image.open(io.BytesIO(data)).size == size
