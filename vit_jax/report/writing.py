"""Writes `report.html` and `report.json` into the folder of a run."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
from typing import Any

import jax
import numpy as np

from vit_jax.files import json_files
from vit_jax.inference import loaded_model
from vit_jax.parallel import numerics
from vit_jax.report import numbers
from vit_jax.report import page
from vit_jax.report import run_record
from vit_jax.report import sections
from vit_jax.report import test_pass
from vit_jax.report import writer_pictures

_FIXED_SECONDS = 10  # for compilation and drawing
_NUM_IMAGES = 100  # of figures that need attention, about


def expected_seconds(workdir: str) -> float:
  """Returns an estimate of the time that `write` takes, from above.

  The test images are read twice, and predicted once. Training takes longer for
  the same number of images.
  """
  record = run_record.read(workdir)
  count = record['data'].get('test images', 0)
  speeds = [
    row['images_per_second_per_device']
    for row in record['metrics']
    if 'images_per_second_per_device' in row
  ]
  if not count:
    return _FIXED_SECONDS
  if not speeds:
    return math.inf
  count = 2 * count + _NUM_IMAGES
  return _FIXED_SECONDS + count / (max(speeds) * jax.device_count())


@numerics.fixed()
def write(
  workdir: str, make_config: Callable, writers: Sequence[Callable] = ()
) -> str:
  """Writes the report of a run; returns the path of the page.

  Args:
    workdir: the run folder.
    make_config: `LoadedModel` -> settings, which name the data.
    writers: functions (step, numbers, pictures). They get the pictures of the
      report, unless there is already a report of this step.

  Raises:
    ValueError: a file of the run is damaged.
  """
  record = run_record.read(workdir)
  trained, found, measured, arrays, reasons = None, None, None, {}, []
  try:
    trained = loaded_model.load(workdir)
    found = test_pass.open_data(trained, make_config(trained))
    if found.kind:
      measured, arrays = found.measure()
  except (ValueError, OSError) as error:
    reasons.append(f'The run was not measured on its test split: {error}')
  rows = numbers.parameters_by_module(trained.params) if trained else []
  images = found.images(sections.indices(measured)) if found else {}
  parts = [
    sections.head(record),
    *map(page.note, reasons),
    *_parts(record, trained, found, measured, arrays, images),
    sections.pictures(workdir),
    sections.parameters(rows) if rows else '',
    sections.settings(record),
  ]
  text = page.document(record['name'], filter(None, parts))
  path = os.path.join(workdir, 'report.html')
  with open(f'{path}.partial', 'w', encoding='utf-8', newline='\n') as file:
    file.write(text)
  os.replace(f'{path}.partial', path)
  stored = os.path.join(workdir, 'report.json')
  is_new = _read_metrics(stored) != record['metrics']
  json_files.write_json(
    stored,
    {
      **record,
      'results': run_record.best_and_last(record),
      'notes': reasons,
      'test': measured,
      'parameters': rows,
    },
  )
  if writers and measured and is_new:
    drawn = writer_pictures.draw(measured, trained.class_names, images)
    for writer in writers:
      writer(record['metrics'][-1]['step'], {}, drawn)
  return path


def _read_metrics(path):
  """Returns the metrics in a `report.json`; None without an intact file."""
  try:
    return (json_files.read_json(path, dict) or {}).get('metrics')
  except ValueError:
    return None


def _parts(
  record: dict[str, Any],
  trained: Any,
  found: Any,
  measured: Any,
  arrays: Any,
  images: Mapping[int, np.ndarray],
) -> list[str]:
  """Returns the sections of the results and of the model."""
  kind = found.kind if measured else ''
  main = {
    'classes': 'accuracy',
    'label_sets': 'average_precision',
    'targets': 'mean_absolute_error',
  }
  parts = [
    sections.results(record, measured),
    sections.curves(record, main.get(kind, 'accuracy')),
  ]
  if kind in ('classes', 'label_sets'):
    parts.append(sections.classes(measured))
  if kind == 'classes':
    names = trained.class_names
    parts += [
      sections.confusion(measured, names, images),
      sections.calibration(measured),
    ]
  if kind == 'targets':
    parts.append(
      sections.predictions(arrays, trained.targets.names, trained.targets.units)
    )
  for name, title in (
    ('mistakes', 'Worst mistakes'),
    ('least_sure', 'Correct, but least sure'),
  ):
    if measured and measured.get(name):
      rows = measured[name]
      chosen = {row['index']: images[row['index']] for row in rows}
      maps, reason = sections.attention(trained, chosen)
      parts.append(sections.examples(title, rows, images, maps, reason))
  if trained:
    parts.append(sections.figures(trained, found))
  return parts
