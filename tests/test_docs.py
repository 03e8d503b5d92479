"""The examples of docs/extending.md do what they say."""

import re

from tests import ROOT
from tests.digits_run import rows_of
from vit_jax import __main__

TEXT = (ROOT / 'docs/extending.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```$', TEXT, re.DOTALL | re.MULTILINE)


def test_the_examples_of_extending(tmp_path, finished_run, capsys):
  *examples, command = BLOCKS
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
