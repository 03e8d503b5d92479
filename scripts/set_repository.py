"""Writes the address of the repository into every file that contains it.

  python scripts/set_repository.py OWNER/NAME   # on GitHub
  python scripts/set_repository.py ''           # removes the address

The current value is `REPOSITORY` in setup.py.
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = ('colabs/vit_jax.ipynb', 'colabs/lit.ipynb')


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


def in_readme(text: str, repository: str) -> str:
  """Returns README.md with links that open the notebooks in Colab."""
  colab = 'https://colab.research.google.com'
  badges = ''.join(
    f'[![Open {path} in Colab]({colab}/assets/colab-badge.svg)]'
    f'({colab}/github/{repository}/blob/main/{path})\n'
    for path in NOTEBOOKS
  )
  return re.sub(
    r'(<!-- repository -->\n).*?(<!-- /repository -->)',
    rf'\g<1>{badges if repository else ""}\g<2>',
    text,
    flags=re.DOTALL,
  )


def in_notebook(text: str, repository: str) -> str:
  """Returns a notebook whose first code cell clones the repository."""
  notebook = json.loads(text)
  for cell in notebook['cells']:
    if 'install' in cell['metadata'].get('tags', []):
      lines = [line for line in cell['source'] if 'git clone' not in line]
      if repository:
        where = lines.index('%cd /content/vit_jax\n')
        clone = f'git clone -q https://github.com/{repository} /content/vit_jax'
        lines.insert(where, f'![ -d /content/vit_jax ] || {clone}\n')
      cell['source'] = lines
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


PLACES = {
  'setup.py': in_setup,
  'CITATION.cff': in_citation,
  'README.md': in_readme,
  **dict.fromkeys(NOTEBOOKS, in_notebook),
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
