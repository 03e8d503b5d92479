"""Writes the address of the repository into every file that contains it.

  python scripts/set_repository.py OWNER/NAME   # on GitHub
  python scripts/set_repository.py ''           # removes the address

The current value is `REPOSITORY` in setup.py.
"""

import functools
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = tuple(
  f'colabs/{name}.ipynb'
  for name in ('vit_jax', 'vit_jax_augreg', 'lit', 'annotated_vit', 'library')
)

MARKERS = '<!-- repository -->\n<!-- /repository -->'  # around badges


def current() -> str:
  """Returns OWNER/NAME, or '' if the address is not known yet."""
  text = (ROOT / 'setup.py').read_text()
  return re.search(r"^REPOSITORY = '(.*)'", text, re.MULTILINE).group(1)


def in_setup(text: str, repository: str) -> str:
  """Returns setup.py with the repository."""
  line = f"REPOSITORY = '{repository}'"
  return re.sub(r"^REPOSITORY = '.*'", line, text, flags=re.MULTILINE)


def in_citation(text: str, repository: str) -> str:
  """Returns CITATION.cff with the repository."""
  text = re.sub(r'^repository-code: .*\n', '', text, flags=re.MULTILINE)
  if repository:
    text += f'repository-code: https://github.com/{repository}\n'
  return text


def _with_badges(text, repository, paths):
  """Returns Markdown with badges that open notebooks in Colab."""
  colab = 'https://colab.research.google.com'
  badges = ''.join(
    f'[![Open {path} in Colab]({colab}/assets/colab-badge.svg)]'
    f'({colab}/github/{repository}/blob/main/{path})\n'
    for path in paths
  )
  return re.sub(
    r'(<!-- repository -->\n).*?(<!-- /repository -->)',
    rf'\g<1>{badges if repository else ""}\g<2>',
    text,
    flags=re.DOTALL,
  )


def in_readme(text: str, repository: str) -> str:
  """Returns README.md with links that open the notebooks in Colab."""
  return _with_badges(text, repository, NOTEBOOKS)


def in_notebook(text: str, repository: str, path: str) -> str:
  """Returns a notebook with a badge, and the repository that it clones."""
  notebook = json.loads(text)
  for i, cell in enumerate(notebook['cells']):
    source = ''.join(cell['source'])
    if i == 0:
      source = _with_badges(source, repository, [path])
    if 'install' in cell['metadata'].get('tags', []):
      line = f"REPOSITORY = '{repository}'"
      source = re.sub(r"^REPOSITORY = '[^']*'", line, source, flags=re.M)
    cell['source'] = source.splitlines(keepends=True)
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


PLACES = {
  'setup.py': in_setup,
  'CITATION.cff': in_citation,
  'README.md': in_readme,
  **{path: functools.partial(in_notebook, path=path) for path in NOTEBOOKS},
}


def main(repository: str) -> None:
  if repository and not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
    sys.exit(f'error: {repository!r} is not a repository. Use OWNER/NAME.')
  for path, write in PLACES.items():
    text = (ROOT / path).read_text()
    (ROOT / path).write_text(write(text, repository))
  print(f'wrote {repository or "no address"} into {", ".join(PLACES)}')


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
