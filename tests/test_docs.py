"""The pages are true: their commands, code, links and names of settings."""

import importlib
import re
import shlex

import jax
import numpy as np
import pytest

from tests import ROOT
from tests.digits_run import rows_of
from vit_jax import __main__
from vit_jax import base_config
from vit_jax import main
from vit_jax import models
from vit_jax.checkpoint import weights_file
from vit_jax.optim import hyperrule

PAGES = [
  ROOT / 'README.md',
  ROOT / 'CONTRIBUTING.md',
  ROOT / 'CHANGELOG.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'benchmarks').rglob('*.md')),
]
BY_NAME = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}


def blocks(text, language):
  return re.findall(rf'^```{language}\n(.*?)^```$', text, re.DOTALL | re.M)


def split(line):
  """Yields the words of each command of a line, without variables and srun."""
  words = shlex.split(line, comments=True)
  for i, word in enumerate(words):
    if word == '&&' or word.startswith('--command='):  # of gcloud
      yield from split(shlex.join(words[:i]))
      rest = word.removeprefix('--command=') if word != '&&' else ''
      yield from split(rest or shlex.join(words[i + 1 :]))
      return
  while words and words[0] not in ('python', 'pip'):
    words.pop(0)  # variables, srun and its options
  if words:
    yield words[: words.index('>') if '>' in words else None]


def commands():
  """Yields (page, words of a command) of all pages and config files."""
  texts = dict(BY_NAME)
  for path in (ROOT / 'configs').glob('*.py'):
    code = '\n'.join(re.findall(r'^  (python .*)', path.read_text(), re.M))
    texts[path.name] = f'```bash\n{code}\n```\n'
  for page, text in texts.items():
    inline = re.findall(r'`((?:python|pip) [^`…]*)`', text)
    for line in [*'\n'.join(blocks(text, 'bash')).splitlines(), *inline]:
      for words in split(line):
        yield page, words


ALL = list(commands())


def of(*start):
  found = [
    (p, w[len(start) :]) for p, w in ALL if tuple(w[: len(start)]) == start
  ]
  assert found
  return [
    pytest.param(words, id=f'{page}: {" ".join(words)}')
    for page, words in found
  ]


@pytest.mark.parametrize('words', of('python', '-m', 'vit_jax.main'))
def test_commands_of_training(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  if words != ['--help'] and '--help' not in words:
    words = [w.replace('process_id=I', 'process_id=1') for w in words]
    config = main.parse_arguments(words).config
    if config.hyperrule:  # the training images determine settings
      config.update_from_flattened_dict(hyperrule.settings(1, (1, 1)))
    base_config.validate(config)


@pytest.mark.parametrize('words', of('python', '-m', 'vit_jax'))
def test_other_commands(words):
  name, *arguments = words or [None]
  if name and name != 'COMMAND':
    assert name in __main__.find_commands()
    command = importlib.import_module(f'vit_jax.commands.{name}')
    if arguments:
      assert command.make_parser().parse_intermixed_args(arguments)


@pytest.mark.parametrize('words', of('pip', 'install'))
def test_extras_exist(words):
  extras = re.search(r'\[(.*)\]', words[-1])
  known = re.findall(r"^    '(\w+)': \[", (ROOT / 'setup.py').read_text(), re.M)
  assert words[0] == '-e'
  assert set(extras.group(1).split(',') if extras else []) <= set(known)


@pytest.mark.parametrize('words', of('python'))
def test_scripts_and_tests_exist(words):
  if words[0] == '-m' and words[1] in ('pytest', 'tests.mutate'):
    paths = [word for word in words[2:] if word.startswith('tests/')]
    markers = words[words.index('-m', 1) + 1 :][:1] if '-m' in words[1:] else []
    assert set(markers) <= {'slow', 'interop'}
  elif words[0] == '-m' and words[1].startswith(('scripts.', 'tests.')):
    paths = [words[1].replace('.', '/') + '.py']
  elif words[0].endswith('.py'):
    paths = words[:1]
    folder = (ROOT / words[0]).parent  # scripts share flags
    code = ''.join(path.read_text() for path in folder.glob('*.py'))
    for word in words[1:]:
      if word.startswith('--'):
        assert word[2:].partition('=')[0] in code, word
  else:
    paths = []
    assert (
      words[0] == '-c'
      or words[:2] in (['-m', 'venv'],)
      or (words[1].startswith('vit_jax'))
    ), words
  assert all((ROOT / path).exists() for path in paths)


def anchors_of(text):
  """Returns the anchors that GitHub gives to the headings of a page."""
  headings = re.findall(r'^#+ (.*)$', text, flags=re.M)
  return {
    re.sub(r'[^\w\- ]', '', x.lower()).replace(' ', '-') for x in headings
  }


@pytest.mark.parametrize('page', BY_NAME)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)]*)\)', BY_NAME[page]):
    if not target.startswith('https://'):
      path, _, anchor = target.partition('#')
      path = (ROOT / page).parent / path if path else ROOT / page
      assert path.exists(), target
      assert not anchor or anchor in anchors_of(path.read_text()), target


@pytest.mark.parametrize('page', BY_NAME)
def test_settings_exist(page):
  config = base_config.get_config()
  for name in ('near', 'NAME'):  # of evaluators in the examples
    base_config.add_evaluator(config, name, 'knn')
  known, groups = base_config.flatten(config), {*config, 'evaluators.NAME'}
  text = re.sub('```python.*?```', '', BY_NAME[page], flags=re.DOTALL)
  text = text.replace('config.json', '')
  for name in re.findall(r'(?<![\w/_])config\.([a-z][\w.]*\w)', text):
    assert name in known or name in groups, name


def test_every_page_is_linked_from_readme_and_short():
  for page, text in BY_NAME.items():
    if page.startswith('docs/'):
      assert f']({page})' in BY_NAME['README.md'], page
      lines = re.sub(r'^```python.*?^```$', '', text, flags=re.DOTALL | re.M)
      is_generated = 'writes this page; do not edit it' in text
      assert is_generated or lines.count('\n') <= 130, page


def test_the_map_names_every_module():
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    if path.name != '__init__.py':
      assert re.search(rf'[`/]{path.name}`', BY_NAME['docs/code_map.md']), path
  for path in (ROOT / 'configs').glob('*.py'):
    assert f'`{path.name}' in BY_NAME['README.md'], path.name


@pytest.mark.slow
def test_the_code_of_models(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = models.get_model('ViT-Ti_16', num_classes=3)
  (code,) = blocks(BY_NAME['docs/models.md'], 'python')
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32), train=False
    )
  )['params']
  weights = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32) / 50, shapes
  )
  weights_file.save('ViT-Ti_16.npz', weights)
  names = {}
  exec(code, names)
  assert names['logits'].shape == (2, 10)
  saved = weights_file.load('adapted.safetensors')
  np.testing.assert_array_equal(
    saved['embedding']['kernel'], weights['embedding']['kernel']
  )


@pytest.mark.slow
def test_the_examples_of_data(tmp_path):
  names = {'folder': str(tmp_path)}
  for example in blocks(BY_NAME['docs/data.md'], 'python'):
    exec(example, names)
  for run in ('arrays', 'batches'):
    assert rows_of(tmp_path / run)[-1]['step'] == 4
    assert 'accuracy_test' in rows_of(tmp_path / run)[-1]


@pytest.mark.slow
def test_the_examples_of_tasks(tmp_path, capsys):
  names = {'folder': str(tmp_path)}
  for example in blocks(BY_NAME['docs/tasks.md'], 'python'):
    exec(example, names)
  assert 'average_precision_test' in rows_of(tmp_path / 'colors')[-1]
  assert 'r2_green_test' in rows_of(tmp_path / 'light')[-1]
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("{'") and lines[1].startswith('[1')


def test_the_examples_of_inference(finished_run):
  photo = str(next(finished_run.photos.glob('test/*/*.png')))
  names = {'run': finished_run.workdir, 'photo': photo}
  for example in blocks(BY_NAME['docs/inference.md'], 'python'):
    exec(example, names)
  assert names['answers'][0] == names['answers'][1] == names['answer']
  assert names['logits'].shape == (3,) and names['features'].shape == (2, 12)
  assert names['outputs'][-1].grid.shape == (2, 3, 12)
  np.testing.assert_allclose(names['weights'].sum(-1), 1, atol=1e-5)
  assert names['weights'].shape == (2, 3, 6, 6)
  assert names['tokens'].shape == (2, 6, 12)
  assert set(names['shapes']['params']) == {'backbone', 'head'}


def test_the_examples_of_figures(finished_run, tmp_path):
  photo = str(next(finished_run.photos.glob('test/*/*.png')))
  names = {'run': finished_run.workdir, 'photo': photo, 'folder': str(tmp_path)}
  for example in blocks(BY_NAME['docs/figures.md'], 'python'):
    exec(example, names)
  assert names['maps']['patches'].shape == (1, 3, 6, 2, 3)
  assert {path.name for path in tmp_path.iterdir()} == {
    'photo_rollout.png',
    'photo_rollout.npz',
  }


@pytest.mark.slow
def test_the_examples_of_extending(tmp_path, finished_run, capsys):
  *examples, command = blocks(BY_NAME['docs/extending.md'], 'python')
  names = {'folder': str(tmp_path)}
  for example in examples:
    exec(example, names)
  for run, names in {
    'brightness': {'error_test', 'train_error', 'loss_test'},
    'noisy': {'accuracy_test'},
    'evaluated': {'norm_weights'},
    'lion': {'norm_weights'},
    'linear': {'norm_weights', 'accuracy_test'},
  }.items():
    assert names <= rows_of(tmp_path / run)[-1].keys()

  (tmp_path / 'count.py').write_text(command)
  assert __main__.find_commands(tmp_path) == {
    'count': 'Prints the number of parameters of a trained model.'
  }
  names = {}
  exec(command, names)
  capsys.readouterr()
  assert names['main']([finished_run.workdir]) == 0
  assert int(capsys.readouterr().out) > 100
