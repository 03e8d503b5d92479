"""The parts of a report, as HTML.

Each function returns a section, or '' if the run has nothing to show there.

Shapes:  B images · H, W image height, width · C channels
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from vit_jax import console
from vit_jax.figures import attention_maps
from vit_jax.figures import catalog
from vit_jax.figures import drawing
from vit_jax.figures import model_figures
from vit_jax.figures import photo_figures
from vit_jax.report import numbers
from vit_jax.report import page
from vit_jax.report import plots
from vit_jax.report import run_record
from vit_jax.report import test_pass
from vit_jax.report import writer_pictures

_MOST_CLASSES = 1000  # rows of the table of classes
_NUM_ATTENTION = 32  # images of the attention distance
_STRENGTH = 0.6  # opacity of attention over an image
_ABOUT = {
  'filters': 'The principal components of the filters of the patches.',
  'positions': 'Cosine similarity of the position embeddings of the patches.',
  'attention_distance': 'The mean distance in pixels between a patch and the '
  'patches that it attends to. Each dot is a head.',
}


def head(record: Mapping[str, Any]) -> str:
  """Returns date, command, time, data, and the settings that were changed."""
  facts = [
    ('ended', record.get('ended')),
    ('command', record.get('command')),
    (
      'time',
      'seconds' in record
      and f'{console.duration(record["seconds"])} from first to last message',
    ),
    ('devices', record.get('devices')),
    ('versions', record.get('versions')),
    ('dataset', record['config'].get('dataset')),
    ('task', record['config'].get('task')),
    *((name, value) for name, value in record['data'].items() if value),
  ]
  facts = [
    [name, value if name != 'fingerprint' else f'{value[:16]}…']
    for name, value in facts
    if value
  ]
  changed = [[k, *map(_setting, x)] for k, x in record['changed'].items()]
  return '\n'.join(
    [
      page.table(['', ''], facts),
      page.folded(
        f'{len(changed)} settings differ from the defaults',
        page.table(['setting', 'value', 'default'], changed),
      ),
      _of_check(record['data_check']),
    ]
  )


def _of_check(found):
  """Returns what `check` found in the folder of the data."""
  if not found:
    return ''
  lines = [*found['notes']]
  lines += [
    f'skipped: {reason}: {len(x)}' for reason, x in found['skipped'].items()
  ]
  for name, text in (
    ('equal_files', 'groups of files with the same content'),
    ('equal_files_in_two_splits', 'of them in two splits'),
    ('equal_files_with_different_labels', 'of them with different labels'),
  ):
    if found[name]:
      lines.append(f'{len(found[name])} {text}')
  return page.folded('Findings in the folder of images', *map(page.note, lines))


def _setting(value):
  return repr(value) if isinstance(value, str) else str(value)


def results(
  record: Mapping[str, Any], measured: Mapping[str, Any] | None
) -> str:
  """Returns the last and best metrics, and the interval of the accuracy."""
  parts = []
  if measured and 'accuracy' in measured:
    low, high = measured['interval']
    parts += [
      page.big(f'{measured["accuracy"]:.2%}'),
      page.note(
        f'accuracy of the newest checkpoint: {measured["correct"]:,} of '
        f'{measured["count"]:,} test images. The 95 % interval of Wilson is '
        f'{low:.2%} to {high:.2%}.'
      ),
    ]
  elif measured:
    parts.append(page.note(f'The test split has {measured["count"]:,} images.'))
  rows = run_record.best_and_last(record)
  if rows:
    header = ['metric', 'last', 'at step', 'best', 'at step']
    parts.append(page.table(header, [list(row.values()) for row in rows]))
  return page.section('Results', *parts) if parts else ''


def curves(record: Mapping[str, Any], main_metric: str) -> str:
  """Returns the curves of the metrics."""
  plot = plots.curves(record['metrics'], main_metric)
  return plot and page.section('Curves', page.plot(plot, 'metrics over steps'))


def classes(measured: Mapping[str, Any]) -> str:
  """Returns the table of classes, the worst first."""
  rows = [list(row.values()) for row in measured['classes'][:_MOST_CLASSES]]
  if not rows:
    return ''
  header = [x.replace('_', ' ') for x in measured['classes'][0]]
  notes = []
  if len(rows) < len(measured['classes']):
    notes = [
      page.note(
        f'The {len(rows)} worst of {len(measured["classes"])} classes. '
        'report.json has all.'
      )
    ]
  return page.section(
    'Classes, the worst first', *notes, page.table(header, rows)
  )


def confusion(
  measured: Mapping[str, Any],
  class_names: Sequence[str],
  images: Mapping[int, np.ndarray],
) -> str:
  """Returns the confusion matrix, or the most frequent confusions."""
  found = measured['confusion']
  if 'matrix' in found:
    plot = writer_pictures.confusion(found['matrix'], class_names)
    body = page.plot(plot, 'confusion matrix; rows are the true classes')
    return page.section('Confusion matrix', body)
  if not found['pairs']:
    return ''
  rows = [
    [
      pair['true'],
      pair['predicted'],
      pair['images'],
      page.Html(
        ''.join(
          page.thumbnail(images[i], f'test image {i}')
          for i in pair['indices']
          if i in images
        )
      ),
    ]
    for pair in found['pairs']
  ]
  header = ['true class', 'predicted class', 'images', 'examples']
  return page.section('Most frequent confusions', page.table(header, rows))


def calibration(measured: Mapping[str, Any]) -> str:
  """Returns the reliability diagram and its table."""
  found = measured['calibration']
  rows = [
    [f'{row["from"]:.2f} to {row["to"]:.2f}', *list(row.values())[2:]]
    for row in found['bins']
    if row['images']
  ]
  header = ['probability', 'images', 'mean probability', 'accuracy']
  return page.section(
    'Calibration',
    page.note(
      'Where the accuracy is below the dashed line, the model is too sure.'
    ),
    page.plot(plots.reliability(**found), 'accuracy over confidence'),
    page.folded('Numbers of the diagram', page.table(header, rows)),
  )


def examples(
  title: str,
  rows: Sequence[Mapping[str, Any]],
  images: Mapping[int, np.ndarray],
  maps: Mapping[int, np.ndarray],
  reason: str = '',
) -> str:
  """Returns test images with their predictions.

  Args:
    title: title of the section.
    rows: from `numbers`: `index`, `true`, `predicted`.
    images: {index: image [H, W, C] in [-1, 1]}.
    maps: {index: image with attention}; may be empty.
    reason: why there are no maps.
  """
  if not rows:
    return ''
  items = []
  for row in rows:
    i = row['index']
    pictures = [page.thumbnail(images[i], f'test image {i}')]
    if i in maps:
      pictures.append(page.thumbnail(maps[i], f'attention in test image {i}'))
    items.append((pictures, _caption(row)))
  text = 'The attention rollout is next to each image.' if maps else reason
  return page.section(
    title, *([page.note(text)] * bool(text)), page.cards(items)
  )


def _caption(row):
  if 'probability' not in row:
    true, predicted = (
      numbers.with_units(row[name], row['units'])
      for name in ('true', 'predicted')
    )
    return f'{row["index"]}: true {true}, predicted {predicted}'
  if row['true'] == row['predicted']:
    return f'{row["index"]}: {row["true"]} ({row["probability"]:.1%})'
  return (
    f'{row["index"]}: true {row["true"]} ({row["true_probability"]:.1%}), '
    f'predicted {row["predicted"]} ({row["probability"]:.1%})'
  )


def attention(
  trained: Any, images: Mapping[int, np.ndarray]
) -> tuple[dict[int, np.ndarray], str]:
  """Returns ({index: image with rollout}, '') or ({}, why there is none)."""
  try:
    catalog.check(trained, 'rollout')
    if not images:
      return {}, ''
    stack = np.stack(list(images.values()))
    found = photo_figures.reduce(trained, stack, attention_maps.rollout)
  except ValueError as error:
    return {}, f'There is no attention rollout: {_reason(error, "rollout")}'
  h, w = found.shape[1:]
  side = trained.model.stride
  return {
    i: _overlay(image[: h * side, : w * side], values)
    for (i, image), values in zip(images.items(), found, strict=True)
  }, ''


def _reason(error, name):
  return str(error).removeprefix(f'figures={name}: ')


def _overlay(image, values):
  """Returns an image [H, W, C] in gray, with a map [h, w] over it."""
  size = image.shape[1], image.shape[0]
  scaled = Image.fromarray((values / (values.max() or 1)).astype(np.float32))
  heat = np.asarray(scaled.resize(size, Image.Resampling.BILINEAR))
  colors = matplotlib.colormaps['inferno'](heat)[..., :3]
  gray = drawing.shown(image).mean(-1, keepdims=True)
  return 2 * (_STRENGTH * colors + (1 - _STRENGTH) * gray) - 1


def figures(trained: Any, found: test_pass.TestPass | None) -> str:
  """Returns filters, positions and attention distance."""
  parts = []
  for name in ('filters', 'positions', 'attention_distance'):
    images = None
    parts.append(page.heading(name.replace('_', ' ').capitalize()))
    try:
      catalog.check(trained, name)
      if name == 'attention_distance':
        if found is None:
          raise ValueError('there are no test images.')
        images = found.spaced_images(_NUM_ATTENTION)
      figure = model_figures.make(trained, name, images)
    except ValueError as error:
      parts.append(page.note(f'Omitted: {_reason(error, name)}'))
      continue
    parts += [page.note(_ABOUT[name]), page.plot(figure.plot, name)]
  return page.section('What the model has learned', *parts)


def pictures(workdir: str) -> str:
  """Returns the pictures that training has written."""
  names = sorted(
    name
    for name in os.listdir(workdir)
    if name.endswith('.png') and name != 'progress.png'
  )
  parts = []
  for name in names:
    title = name.removesuffix('.png').replace('_', ' ')
    if name == 'augmented.png':
      title = 'the first training images, after augmentation'
    path = os.path.join(workdir, name)
    parts += [page.note(title), page.picture_file(path, title)]
  return page.section('Pictures of training', *parts) if parts else ''


def parameters(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of modules."""
  total = sum(row['parameters'] for row in rows) or 1
  shown = [[*row.values(), f'{row["parameters"] / total:.1%}'] for row in rows]
  header = ['module', 'arrays', 'parameters', 'fraction']
  return page.section(
    'Parameters', page.note(f'{total:,} parameters.'), page.table(header, shown)
  )


def settings(record: Mapping[str, Any]) -> str:
  """Returns all settings, folded."""
  rows = [[k, _setting(x)] for k, x in sorted(record['config'].items())]
  return page.section(
    'Settings',
    page.folded('All settings', page.table(['setting', 'value'], rows)),
  )


def predictions(
  arrays: Mapping[str, np.ndarray], names: Sequence[str], units: Sequence[str]
) -> str:
  """Returns the plot of predicted over true targets."""
  titles = [
    f'{name} ({unit})' if unit else name
    for name, unit in zip(names, units, strict=True)
  ]
  plot = plots.predictions(arrays['labels'], arrays['predicted'], titles)
  return page.section('Predictions', page.plot(plot, 'predicted over true'))


def indices(measured: Mapping[str, Any] | None) -> list[int]:
  """Returns the numbers of the test images that the sections show."""
  if not measured:
    return []
  rows = [*measured.get('mistakes', ()), *measured.get('least_sure', ())]
  pairs = measured.get('confusion', {}).get('pairs', ())
  found = {row['index'] for row in rows}
  return sorted(found.union(*(pair['indices'] for pair in pairs)))
