"""Makes colabs/library.ipynb from docs/library.md: the same text and code.

python -m scripts.make_notebook
"""

import json
import pathlib
import re

from scripts import set_repository

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = 'colabs/library.ipynb'
# The first code cell of all notebooks.
INSTALL = """\
# @title Install { display-mode: "form" }
# In Colab, this cell clones the repository. It installs what is missing.
import importlib.metadata
import os
import subprocess
import sys

REPOSITORY = ''  # @param {type:"string"}
REQUIREMENTS = {'vit_jax': '-e .'}

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
if 'google.colab' in sys.modules:
  folder = '/content/vit_jax'
  if not os.path.isdir(folder):
    assert REPOSITORY, 'Set REPOSITORY to OWNER/NAME of vit_jax on GitHub.'
    url = f'https://github.com/{REPOSITORY}'
    subprocess.run(['git', 'clone', '-q', url, folder], check=True)
  os.chdir(folder)
elif os.path.basename(os.getcwd()) == 'colabs':
  os.chdir('..')
assert os.path.isfile('configs/quickstart.py'), (
  f'{os.getcwd()} is not the repository of vit_jax. Start Jupyter there.'
)
if os.getcwd() not in sys.path:
  sys.path.insert(0, os.getcwd())
for name, requirement in REQUIREMENTS.items():
  if not any(importlib.metadata.distributions(name=name)):
    pip = [sys.executable, '-m', 'pip', 'install', '-q']
    subprocess.run([*pip, *requirement.split()], check=True)
"""
_SETTINGS = "folder, steps = 'workdirs/library', 300"


def _cell(kind, text, *tags):
  cell = {
    'cell_type': kind,
    'metadata': {'tags': list(tags)} if tags else {},
    'source': text.strip('\n').splitlines(keepends=True),
  }
  if kind == 'code':
    cell |= {'execution_count': None, 'outputs': []}
  return cell


def make(page: str) -> str:
  """Returns the notebook of a page: a cell for each text and each block."""
  page = re.sub(r'\]\((?!http)([\w.]+\.md)', r'](../docs/\1', page)
  page = page.replace('](../colabs/', '](')
  page = page.replace('\n\n', f'\n\n{set_repository.MARKERS}\n\n', 1)
  first, *parts = re.split(r'^```python\n(.*?)^```$', page, flags=re.M | re.S)
  cells = [
    _cell('markdown', first),
    _cell('code', INSTALL, 'install'),
    _cell('code', _SETTINGS, 'settings'),
  ]
  for i, part in enumerate(parts):
    if part.strip():
      cells.append(_cell('markdown' if i % 2 else 'code', part))
  for i, cell in enumerate(cells):
    cell['id'] = f'cell-{i}'
  cells[1]['metadata']['cellView'] = 'form'  # Colab hides the code
  notebook = {
    'cells': cells,
    'metadata': {
      'accelerator': 'GPU',
      'colab': {'gpuType': 'T4', 'toc_visible': True},
      'kernelspec': {
        'display_name': 'Python 3',
        'language': 'python',
        'name': 'python3',
      },
      'language_info': {'name': 'python'},
    },
    'nbformat': 4,
    'nbformat_minor': 5,
  }
  repository = set_repository.current()
  return set_repository.in_notebook(json.dumps(notebook), repository, PATH)


def main() -> None:
  """Writes the notebook."""
  page = (ROOT / 'docs/library.md').read_text(encoding='utf-8')
  (ROOT / PATH).write_text(make(page), encoding='utf-8')


if __name__ == '__main__':
  main()
