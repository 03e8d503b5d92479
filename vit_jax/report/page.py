"""An HTML page in one file: text, tables and pictures, without scripts.

All functions escape their texts and return HTML.

Shapes:  H, W image height, width · C channels
"""

import base64
from collections.abc import Iterable
from collections.abc import Sequence
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.figures import drawing

_SIDES = 96, 128  # smallest and largest longer side of a thumbnail
_NUMBER = ' class="number"'
_WIDTH = 1100  # of a large picture
_STYLE = '\n'.join(
  (
    ':root { color-scheme: light dark; --back: #ffffff; --text: #1c1e21;',
    '--weak: #5c6470; --line: #d9dde3; --card: #f5f6f8; --bar: #4c78a8; }',
    '@media (prefers-color-scheme: dark) {',
    ':root { --back: #15181c; --text: #e4e7eb; --weak: #9aa4b2;',
    '--line: #343a43; --card: #1e2329; --bar: #6ea0d6; } }',
    'body { background: var(--back); color: var(--text); margin: 2rem auto;',
    'max-width: 70rem; padding: 0 1rem;',
    'font: 15px/1.5 system-ui, sans-serif; }',
    'h1, h2 { line-height: 1.2; }',
    'h2 { margin-top: 2.5rem; font-size: 1.25rem; }',
    'h3 { font-size: 1rem; margin-bottom: .3rem; }',
    'p.note, figcaption, .weak { color: var(--weak); }',
    'table { border-collapse: collapse; font-size: 14px; }',
    'td, th { border-bottom: 1px solid var(--line);',
    'padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;',
    'overflow-wrap: anywhere; }',
    'td.number, th.number { text-align: right; white-space: nowrap; }',
    '.big { font-size: 2rem; font-weight: 600; margin: .5rem 0 0; }',
    '.scroll { overflow: auto; max-height: 32rem; }',
    'img { max-width: 100%; height: auto; }',
    'img.plot { background: #ffffff; border-radius: 6px; padding: 4px; }',
    'img.pixels { image-rendering: pixelated; }',
    '.cards { display: flex; flex-wrap: wrap; gap: .8rem; }',
    '.card { background: var(--card); border-radius: 6px; margin: 0;',
    'padding: .5rem; font-size: 13px; max-width: 17rem;',
    'overflow-wrap: anywhere; }',
    'summary { cursor: pointer; }',
  )
)


def document(title: str, parts: Iterable[str]) -> str:
  """Returns the page."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(title)}</title>\n'
    f'<style>\n{_STYLE}\n</style>\n</head>\n'
    f'<body>\n<h1 dir="auto">{html.escape(title)}</h1>\n'
    + '\n'.join(parts)
    + '\n</body>\n</html>\n'
  )


def section(title: str, *parts: str) -> str:
  """Returns a heading with the parts below it."""
  return '\n'.join([f'<h2>{html.escape(title)}</h2>', *parts])


def heading(text: str) -> str:
  """Returns a smaller heading."""
  return f'<h3>{html.escape(text)}</h3>'


def note(text: str) -> str:
  """Returns a paragraph that explains something."""
  return f'<p class="note">{html.escape(text)}</p>'


def big(text: str) -> str:
  """Returns a paragraph of large letters."""
  return f'<p class="big">{html.escape(text)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Returns a table; numbers are aligned to the right.

  A value that is already HTML is a `Html`.
  """
  rows = [list(row) for row in rows]
  numeric = [
    bool(rows) and all(isinstance(row[i], (int, float, _None)) for row in rows)
    for i in range(len(header))
  ]

  def line(tag, values):
    cells = (
      f'<{tag}{_NUMBER * is_number} dir="auto">{_cell(x)}</{tag}>'
      for x, is_number in zip(values, numeric, strict=True)
    )
    return f'<tr>{"".join(cells)}</tr>'

  return '\n'.join(
    [
      '<div class="scroll"><table>',
      f'<thead>{line("th", header)}</thead>' if any(header) else '',
      '<tbody>',
      *(line('td', row) for row in rows),
      '</tbody></table></div>',
    ]
  )


class Html(str):
  """Text that is already HTML."""


_None = type(None)


def _cell(value):
  if isinstance(value, Html):
    return value
  if value is None:
    return '–'
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  return html.escape(str(value))


def folded(title: str, *parts: str) -> str:
  """Returns parts that are hidden until the reader opens them."""
  return (
    f'<details><summary>{html.escape(title)}</summary>\n'
    + '\n'.join(parts)
    + '\n</details>'
  )


def cards(items: Iterable[tuple[Sequence[str], str]]) -> str:
  """Returns pictures with texts: (pictures as HTML, caption) of each."""
  return (
    '<div class="cards">\n'
    + '\n'.join(
      f'<figure class="card">{"".join(pictures)}'
      f'<figcaption dir="auto">{html.escape(text)}</figcaption></figure>'
      for pictures, text in items
    )
    + '\n</div>'
  )


def plot(figure: Any, description: str) -> Html:
  """Returns a matplotlib figure, or the bytes of a PNG file, as a picture."""
  data = figure if isinstance(figure, bytes) else drawing.png(figure)
  return _image(data, 'png', description, 'plot')


def thumbnail(image: np.ndarray, description: str) -> Html:
  """Returns a small picture.

  Args:
    image: [H, W, C] in [-1, 1].
    description: text for readers who cannot see the picture.
  """
  pixels = np.round(drawing.shown(image) * 255).astype(np.uint8)
  picture = Image.fromarray(pixels)
  longest = max(picture.size)
  side = min(max(longest, _SIDES[0]), _SIDES[1])
  if side != longest:
    size = [max(1, round(x * side / longest)) for x in picture.size]
    kind = Image.Resampling.NEAREST if side > longest else None
    picture = picture.resize(size, kind)
  return _image(_jpeg(picture, 80), 'jpeg', description, 'pixels')


def picture_file(path: str, description: str) -> Html:
  """Returns a picture of a file, not wider than the page."""
  with Image.open(path) as picture:
    picture = picture.convert('RGB')
  picture.thumbnail((_WIDTH, 2 * _WIDTH))
  return _image(_jpeg(picture, 85), 'jpeg', description, 'plot')


def _jpeg(picture, quality):
  file = io.BytesIO()
  picture.save(file, 'JPEG', quality=quality)
  return file.getvalue()


def _image(data, kind, description, style):
  text = base64.b64encode(data).decode('ascii')
  return Html(
    f'<img class="{style}" alt="{html.escape(description)}" '
    f'src="data:image/{kind};base64,{text}">'
  )
