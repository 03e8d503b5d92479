"""Writes the packaged table of timm's architectures.

  python scripts/make_timm_table.py FACTS.json

FACTS.json is {"timm": version, "architectures": {name: facts}}. The facts were
read from timm's models: sizes, kinds of layers, and the mean, deviation, size,
crop and license of each published file. The output is the same for the same
facts.
"""

import gzip
import json
import pathlib
import sys

OUTPUT = (
  pathlib.Path(__file__).parent.parent
  / 'vit_jax/checkpoint/other_libraries/timm_architectures.json.gz'
)


def main(path):
  with open(path, encoding='utf-8') as file:
    table = json.load(file)['architectures']
  text = json.dumps(table, separators=(',', ':'), sort_keys=True)
  # Without a time, the file changes only if the facts change.
  OUTPUT.write_bytes(gzip.compress(text.encode(), mtime=0))
  print(f'{OUTPUT}: {len(table)} architectures')


if __name__ == '__main__':
  main(*sys.argv[1:])
