"""Compares ViT-like architectures of timm with vit_jax, and writes a table.

  python -m scripts.check_timm                   # all; writes the table
  python -m scripts.check_timm 'eva02_*' --table=eva.md

This script needs the extra `interop`. timm makes each architecture with two
blocks and random weights (`tests/placed_values.py`), and saves it as for the
Hub. `vit_jax.load(folder)` loads it without any option. An architecture is
equal if logits and features differ by at most 2e-4 of the largest value.

Results are appended to a file of JSON lines (--results). If the script is
stopped, the next start continues. After a change of the code of vit_jax, all
architectures are compared again.
"""

import argparse
import fnmatch
import gc
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time

# Most of the time would be compilation. Without optimization, it is short.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1',
)

import jax
import numpy as np

from tests import placed_values
from tests import timm_models
import vit_jax
from vit_jax.checkpoint import metadata

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / 'docs' / 'models_of_timm.md'
TOLERANCE = 2e-4
# A comparison is blind if a mistake would change the logits by less.
VISIBLE = {'gelu': 1e-3, 'epsilon': 2 * TOLERANCE}
TITLES = {
  'equal': 'equal',
  'refused': 'refused, with the reason',
  'wrong': 'WRONG: other values without a word',
  'crash': 'CRASH: an error that is no refusal',
  'blind': 'BLIND: equal, but a mistake would go unseen',
  'large': 'not compared: more than 120 million parameters with two blocks',
}


def fingerprint() -> str:
  """Returns a hash of all code that decides the results."""
  found = hashlib.sha256()
  for folder in (ROOT / 'vit_jax', ROOT / 'tests', ROOT / 'scripts'):
    paths = (
      folder.rglob('*')
      if folder.name == 'vit_jax'
      else [
        folder / name
        for name in ('check_timm.py', 'placed_values.py', 'timm_models.py')
      ]
    )
    for path in sorted(paths):
      if path.is_file() and '__pycache__' not in path.parts:
        found.update(path.read_bytes())
  return found.hexdigest()[:16]


def compare(name: str) -> dict:
  """Returns the row of an architecture: result, reason, differences."""
  settings = timm_models.depth_settings(name)
  num = timm_models.num_parameters(name, **settings)
  row = {'name': name, 'parameters': num}
  if num > timm_models.MOST_PARAMETERS and not name.startswith('mixer_'):
    return row | {'result': 'large'}
  model = timm_models.create(name, **settings)
  with tempfile.TemporaryDirectory() as parent:
    folder = f'{parent}/{name}'
    timm_models.save(model, pathlib.Path(folder), settings)
    try:
      loaded = vit_jax.load(folder)
    except ValueError as error:
      return row | {'result': 'refused', 'reason': shorten(error, folder)}
    except Exception as error:
      return row | _crash(error)
    if not means_the_same(folder, settings):
      return row | {'result': 'wrong', 'reason': 'other without model_args'}
    size = timm_models.image_size(model)
    images = placed_values.images(size, 2 if max(size) <= 256 else 1)
    expected = timm_models.outputs(model, images)
    row |= timm_models.effects(
      model, images, expected.get('logits', expected['features'])
    )
    try:
      found = ours(loaded, images)
    except Exception as error:
      return row | _crash(error)
  differences = {
    key: timm_models.relative(found[key], value)
    if key in found and found[key].shape == value.shape
    else 1.0
    for key, value in expected.items()
  }
  row['differences'] = differences
  if max(differences.values()) > TOLERANCE:
    return row | {'result': 'wrong'}
  is_blind = any(row.get(key, 1) < least for key, least in VISIBLE.items())
  return row | {'result': 'blind' if is_blind else 'equal'}


def means_the_same(folder: str, settings: dict) -> bool:
  """Returns whether a config with fewer `model_args` gives the same model.

  Most published files have none. Then the architecture alone decides.
  """
  full = metadata.of_weights(folder)
  path = pathlib.Path(folder, 'config.json')
  config = json.loads(path.read_text('utf-8'))
  path.write_text(json.dumps(config | {'model_args': settings}), 'utf-8')
  short = metadata.of_weights(folder)
  return (full.settings, full.image_size) == (short.settings, short.image_size)


def ours(loaded, images):
  """Returns our outputs, with the keys of `timm_models.outputs`."""
  found = {'features': loaded.features(images)}
  if getattr(loaded.model, 'distilled', False):  # timm has their mean
    width = loaded.model.hidden_size
    found['features'] = found['features'].reshape(-1, 2, width).mean(axis=1)
  if loaded.model.num_classes:
    found['logits'] = loaded.logits(images)
  block = loaded.features(images, blocks=[-1])[-1]
  grid = np.asarray(block.grid)
  parts = [block.class_token, block.distillation_token, block.registers, grid]
  width = grid.shape[-1]
  found['tokens'] = np.concatenate(
    [
      np.asarray(part).reshape(len(images), -1, width)
      for part in parts
      if part is not None
    ],
    axis=1,
  )
  return found


def _crash(error):
  return {
    'result': 'crash',
    'reason': shorten(f'{type(error).__name__}: {error}'),
  }


def shorten(error: Exception | str, folder: str = '', most: int = 160) -> str:
  """Returns an error message on one line, without paths."""
  text = ' '.join(str(error).split())
  if folder:
    text = text.replace(f'{folder}/', '').replace(f'{folder}: ', '')
  text = re.sub(r'^config\.json, .* The error is \w+: ', '', text)
  return text if len(text) <= most else text[: most - 2].rstrip() + ' …'


def read_results(path: pathlib.Path, code: str) -> dict[str, dict]:
  """Returns {architecture: row} of the rows with this code."""
  if not path.exists():
    return {}
  rows = map(json.loads, path.read_text('utf-8').splitlines())
  return {row['name']: row for row in rows if row['code'] == code}


def run(names: list[str], path: pathlib.Path) -> list[dict]:
  """Compares architectures, prints progress and returns their rows."""
  code = fingerprint()
  rows = read_results(path, code)
  missing = sorted(
    (name for name in names if name not in rows), key=_num_parameters
  )  # Small models first: most mistakes are found in the first minutes.
  start = time.time()
  for i, name in enumerate(missing, 1):
    row = compare(name) | {'code': code}
    with path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')
    rows[name] = row
    jax.clear_caches()
    gc.collect()
    seconds = (time.time() - start) / i
    left = seconds * (len(missing) - i) / 60
    print(
      f'{i} of {len(missing)} · {seconds:.1f} s each · {left:.0f} minutes left '
      f'· {name}: {row["result"]} {row.get("reason") or _largest(row)}',
      flush=True,
    )
  return [rows[name] for name in names]


def _num_parameters(name):
  settings = timm_models.depth_settings(name)
  return timm_models.num_parameters(name, **settings)


def _largest(row):
  return (
    f'{max(row["differences"].values()):.0e}' if 'differences' in row else ''
  )


def write_table(rows: list[dict], path: pathlib.Path) -> None:
  """Writes the table, which begins with the number of each result."""
  counts = {key: sum(row['result'] == key for row in rows) for key in TITLES}
  summary = ', '.join(
    f'{count} {TITLES[key].partition(":")[0].partition(",")[0].lower()}'
    for key, count in counts.items()
    if count
  )
  equal = [row for row in rows if row['result'] == 'equal']
  lines = [
    '# Models of timm',
    '',
    f'**{len(rows)} architectures: {summary}.**',
    '',
    *_explanation(equal),
    '',
    '| architecture | result | largest difference |',
    '| --- | --- | ---: |',
    *(
      f'| `{row["name"]}` | {_result(row)} | {_largest(row)} |' for row in rows
    ),
  ]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _result(row):
  title = TITLES[row['result']].partition(',')[0]
  reason = row.get('reason', '').replace('|', '\\|')
  return f'{title}: {reason}' if reason else title


def _explanation(equal):
  import timm

  least = {
    key: min([row[key] for row in equal if key in row], default=0)
    for key in VISIBLE
  }
  worst = {row['name']: max(row['differences'].values()) for row in equal}
  return [
    '`python -m scripts.check_timm` writes this page; do not edit it. It lists '
    f'all architectures of timm {timm.__version__} whose names begin with '
    + ', '.join(f'`{prefix}`' for prefix in timm_models.PREFIXES)
    + '. timm makes each one with two blocks (Mixers with all blocks) and '
    'random weights, and saves it as for the Hub. '
    '`vit_jax.load(folder)` loads it without any option.',
    '',
    f'- **Equal** means: logits, features and the tokens after the last block '
    f'differ by at most {TOLERANCE:.0e} of the largest value. The largest '
    f'difference of all is {max(worst.values()):.0e}, of '
    f'`{max(worst, key=worst.get)}`.',
    '- **Refused** means that vit_jax raises an error instead. The table has '
    'the beginning of its message.',
    f'- With these weights, another GELU (exact or tanh) changes the logits by '
    f'at least {least["gelu"]:.0e}, and an epsilon ten times larger by at '
    f'least {least["epsilon"]:.0e}. So neither mistake could go unseen.',
  ]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', default=['*'], help='patterns')
  parser.add_argument('--table', type=pathlib.Path, default=TABLE)
  parser.add_argument(
    '--results',
    type=pathlib.Path,
    default=pathlib.Path(tempfile.gettempdir()) / 'models_of_timm.jsonl',
  )
  arguments = parser.parse_args()
  names = [
    name
    for name in timm_models.names()
    if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.names)
  ]
  rows = run(names, arguments.results)
  if arguments.names == ['*'] or arguments.table != TABLE:
    write_table(rows, arguments.table)
  bad = [row['name'] for row in rows if row['result'] in ('wrong', 'crash')]
  print(f'{len(rows)} architectures, {len(bad)} wrong:', *bad)
  return bool(bad)


if __name__ == '__main__':
  sys.exit(main())
