"""The address of the repository is in one place, and the script writes it."""

import json
import re
import shutil
import subprocess
import sys

from scripts import set_repository
from tests import ROOT
import vit_jax

# Addresses of other projects.
OTHERS = {'google-research/vision_transformer'}


def test_no_other_file_names_an_address():
  """Files of `set_repository.PLACES` name the current one."""
  current = set_repository.current()
  folders = ('.ci', 'benchmarks', 'colabs', 'configs', 'docs', 'scripts')
  paths = [path for path in ROOT.iterdir() if path.is_file()]
  for folder in (*folders, 'tests', 'vit_jax'):
    paths += [path for path in (ROOT / folder).rglob('*') if path.is_file()]
  for path in paths:
    try:
      text = path.read_text()
    except UnicodeDecodeError:  # an image, weights
      continue
    found = set(re.findall(r'github\.com/([\w.-]+/[\w.-]+\w)', text))
    if str(path.relative_to(ROOT)) in set_repository.PLACES:
      found -= {current}
    assert found <= OTHERS, path


def test_every_place_has_the_current_address():
  for path, write in set_repository.PLACES.items():
    text = (ROOT / path).read_text()
    assert write(text, set_repository.current()) == text, path


def test_the_script_writes_and_replaces_the_address(tmp_path):
  for path in (*set_repository.PLACES, 'scripts/set_repository.py'):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / path, tmp_path / path)

  def run(repository):
    return subprocess.run(
      [sys.executable, 'scripts/set_repository.py', repository],
      cwd=tmp_path,
      text=True,
      capture_output=True,
      check=False,
    )

  def texts():
    return {p: (tmp_path / p).read_text() for p in set_repository.PLACES}

  for repository in ('someone/vit', 'other/name'):
    assert run(repository).returncode == 0
    for path, text in texts().items():
      assert repository in text, path
  assert not any('someone' in text for text in texts().values())
  for path, text in texts().items():
    if path.endswith('.ipynb'):
      json.loads(text)
  assert '/other/name/blob/main/colabs/lit.ipynb' in texts()['README.md']
  before = texts()
  refused = run('only-a-name')
  assert refused.returncode and 'OWNER/NAME' in refused.stderr
  assert texts() == before
  assert run('').returncode == 0
  assert not any('other/name' in text for text in texts().values())


def test_citation_and_package_agree():
  citation = (ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {vit_jax.__version__}\n' in citation
  setup = (ROOT / 'setup.py').read_text()
  for text in (citation, setup):
    assert 'The vit_jax developers' in text and 'Apache-2.0' in text
  assert (ROOT / 'LICENSE').read_text().lstrip().startswith('Apache License')
