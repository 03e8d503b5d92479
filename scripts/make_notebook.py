"""Makes colabs/library.ipynb from docs/library.md: the same text and code.

python scripts/make_notebook.py
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
_INSTALL = """
# Clone or upload the repository first, to this folder. In Colab, run this cell
# once, and restart the runtime if Colab asks for it.
%cd /content/vit_jax
%pip install -q -e ."""
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


def make(page: str) -> dict:
  """Returns the notebook of a page: a cell for each text and each block."""
  page = re.sub(r'\]\((?!http)([\w.]+\.md)', r'](../docs/\1', page)
  page = page.replace('](../colabs/', '](')
  first, *parts = re.split(r'^```python\n(.*?)^```$', page, flags=re.M | re.S)
  cells = [
    _cell('markdown', first),
    _cell('code', _INSTALL, 'install'),
    _cell('code', _SETTINGS, 'settings'),
  ]
  for i, part in enumerate(parts):
    if part.strip():
      cells.append(_cell('markdown' if i % 2 else 'code', part))
  for i, cell in enumerate(cells):
    cell['id'] = f'cell-{i}'
  return {
    'cells': cells,
    'metadata': {
      'kernelspec': {
        'display_name': 'Python 3',
        'language': 'python',
        'name': 'python3',
      }
    },
    'nbformat': 4,
    'nbformat_minor': 4,
  }


def main() -> None:
  """Writes the notebook."""
  page = (ROOT / 'docs/library.md').read_text(encoding='utf-8')
  text = json.dumps(make(page), ensure_ascii=False, indent=1) + '\n'
  (ROOT / 'colabs/library.ipynb').write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
