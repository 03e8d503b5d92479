"""Reads the files of a run folder: settings, metrics, data, log."""

import datetime
import json
import math
import os
import platform
import re
import sys
from typing import Any

from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.files import json_files
from vit_jax.files import regular_files
from vit_jax.run.writers import metric_log

# The lines of log.txt that `describe_start` and the run write.
_LINE = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \w+ vit_jax: (.*)')
# {word in the name of a metric: its better direction}. The first word counts,
# since the name of an evaluator is at the end.
_BETTER = {
  **dict.fromkeys(
    ('accuracy', 'precision', 'recall', 'match', 'r2', 'top'), 'max'
  ),
  **dict.fromkeys(('loss', 'error', 'ece', 'brier'), 'min'),
}
_NOTED = ('command', 'versions')
_DATA = {'fingerprint?': (str, None)}
_DATA_CHECK = {
  'notes': [str],
  'skipped': {str: list},
  'equal_files': list,
  'equal_files_in_two_splits': list,
  'equal_files_with_different_labels': list,
}
_LIBRARIES = ('vit_jax', 'jax', 'flax', 'optax', 'orbax.checkpoint', 'numpy')


def describe_start(command: str) -> list[str]:
  """Returns the lines of a log from which `read` takes command and versions."""
  versions = [f'Python {platform.python_version()}']
  versions += [
    f'{name} {sys.modules[name].__version__}'
    for name in _LIBRARIES
    if name in sys.modules
  ]
  return [f'command: {command}', f'versions: {", ".join(versions)}']


def read(workdir: str) -> dict[str, Any]:
  """Returns what the files of a run contain, as values of JSON.

  Args:
    workdir: the run folder.

  Returns:
    A dict with `name`, `ended` and other facts of the log, `config` (all
    settings), `changed` ({setting: [value, default]}), `metrics` (the rows of
    metrics.jsonl), `data` and `data_check`.

  Raises:
    ValueError: a file is damaged.
  """
  config = metadata.read_config(workdir)
  defaults = json.loads(
    json.dumps(base_config.flatten(base_config.get_config()))
  )
  return {
    'name': os.path.basename(os.path.abspath(workdir)),
    **_read_log(workdir),
    'config': config,
    'changed': {
      name: [value, defaults.get(name)]
      for name, value in sorted(config.items())
      if name not in defaults or value != defaults[name]
    },
    'metrics': metric_log.read(os.path.join(workdir, 'metrics.jsonl')),
    'data': json_files.read_json(f'{workdir}/data.json', _DATA) or {},
    'data_check': json_files.read_json(
      f'{workdir}/data_check.json', _DATA_CHECK
    ),
  }


def _read_log(workdir):
  """Returns date, duration and notes of the log, up to the end of the run."""
  path = os.path.join(workdir, 'log.txt')
  if not os.path.exists(path):
    ended = os.path.getmtime(os.path.join(workdir, 'metrics.jsonl'))
    date = datetime.datetime.fromtimestamp(ended, datetime.UTC)
    return {'ended': f'{date:%Y-%m-%d %H:%M} UTC'}
  regular_files.check(path)
  found, first, last = {}, None, None
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      match = _LINE.match(line)
      if not match:
        continue
      time, text = match.groups()
      first, last = first or time, time
      kind, _, rest = text.partition(': ')
      if kind in _NOTED:
        found[kind] = rest
      if kind == 'done':
        found['ended'] = time
      if parameters := re.search(r', on (\d+ \w+ device\(s\).*)', text):
        found['devices'] = parameters[1]
  if first is None:
    return {}
  found.setdefault('ended', last)  # the run was stopped
  seconds = [
    datetime.datetime.fromisoformat(x).timestamp()
    for x in (first, found['ended'])
  ]
  found['seconds'] = round(seconds[1] - seconds[0])
  return found


def best_and_last(record: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns a row for each metric of an evaluation, with last and best value.

  The best value is None if the name of the metric, and `config.best_metric`, do
  not tell whether high or low values are better.

  Args:
    record: what `read` returned.
  """
  found, config = {}, record['config']
  for row in record['metrics']:
    for name, value in row.items():
      is_measured = not name.startswith(('train_', 'images_per'))
      if is_measured and name not in ('step', 'lr', 'grad_norm'):
        found.setdefault(name, []).append((row['step'], value))
  table = []
  for name, points in found.items():
    direction = next((_BETTER[x] for x in name.split('_') if x in _BETTER), '')
    if name == config.get('best_metric'):
      direction = config.get('best_direction') or direction
    choose = {'max': max, 'min': min}.get(direction)
    step, best = choose(points, key=lambda x: x[1]) if choose else (None, None)
    last_step, last = points[-1]
    if math.isfinite(last):
      table.append(
        dict(
          metric=name, last=last, last_step=last_step, best=best, best_step=step
        )
      )
  return table
