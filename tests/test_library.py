"""The recipes of docs/library.md run, and their results are true."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts import make_notebook
from tests import ROOT
from tests.digits_run import rows_of
import vit_jax

PAGE = (ROOT / 'docs/library.md').read_text()


def blocks(text):
  return re.findall(r'^```python\n(.*?)^```$', text, re.DOTALL | re.M)


def recipes():
  """Returns {title: code} of the recipes of docs/library.md."""
  _, *parts = PAGE.split('\n## ')
  return {part.partition('\n')[0]: '\n'.join(blocks(part)) for part in parts}


def test_the_recipes_of_the_library_are_short():
  assert len(recipes()) == 10
  for title, code in recipes().items():
    *lines, last = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10 and last.startswith('print('), title


def run_page(folder):
  """Returns the variables of the page after each recipe: {title: …}."""
  names = {'folder': str(folder), 'steps': 6}
  exec(blocks(PAGE)[0], names)
  found = {}
  for title, code in recipes().items():
    exec(code, names)
    found[title] = types.SimpleNamespace(**names)
  return found


def mean_cross_entropy(logits, targets, weights=1):
  """Returns the mean loss, in NumPy. Targets are probabilities [B, K]."""
  logits = np.asarray(logits, np.float64)
  logits -= logits.max(-1, keepdims=True)
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -(weights * (targets * logs).sum(-1)).mean()


def check_runs(of_library):
  """Compares the metrics of the runs with those of their parameters."""
  n = of_library['A sweep']
  images, one_hot = n.as_floats(n.x_test), np.eye(10)[n.y_test]

  tuned, same = n.tuned.params, n.same
  assert tuned['head']['kernel'].shape[1] == 2
  assert all(jax.tree.leaves({k: v for k, v in same.items() if k != 'head'}))
  assert n.tuned.metrics['accuracy_test'] == pytest.approx(
    (
      vit_jax.load(f'{n.folder}/parity').logits(n.x_test).argmax(-1)
      == n.y_test % 2
    ).mean()
  )

  student = n.trained.model.clone(num_classes=20)
  both = student.apply({'params': n.two.params}, images, train=False)
  teacher = jax.nn.softmax(n.logits_of(n.trained.params, images))
  hard = mean_cross_entropy(both[:, :10], one_hot)
  soft = mean_cross_entropy(both[:, 10:], np.asarray(teacher))
  assert n.two.metrics['loss_test'] == pytest.approx(hard + soft, rel=1e-4)
  assert n.two.metrics['distillation_test'] == pytest.approx(soft, rel=1e-4)

  logits = n.logits_of(n.mixed.params, images)  # evaluated without mixup
  assert n.mixed.metrics['loss_test'] == pytest.approx(
    mean_cross_entropy(logits, one_hot), rel=1e-4
  )
  assert n.mixed.metrics['train_loss'] != n.result.metrics['train_loss']

  logits = n.logits_of(n.heavy.params, images)
  weights = len(n.y) / 10 / np.array([(n.y == k).sum() for k in range(10)])
  assert n.heavy.metrics['loss_test'] == pytest.approx(
    mean_cross_entropy(logits, one_hot, weights[n.y_test]), rel=1e-4
  )

  rows = [rows_of(f'{n.folder}/lr_{lr}')[-1] for lr in n.scores]
  assert not any(name.endswith('_test') for row in rows for name in row)
  assert list(n.scores.values()) == [r['accuracy_validation'] for r in rows]
  assert n.scores[n.best] == max(n.scores.values())


def check_uses_of_a_model(of_library):
  """Compares the other results with NumPy, one device and differences."""
  n = of_library['Features in scikit-learn']
  chance = np.bincount(n.y_test).max() / len(n.y_test)
  assert n.probe.score(n.trained.features(n.x_test), n.y_test) > 2 * chance

  n = of_library['A training loop of your own, on several devices']
  assert len(n.batch[0].sharding.device_set) == 8
  state = n.trained.params, n.optimizer.init(n.trained.params)
  for rows in (slice(64), slice(64, 128)):
    *state, loss = n.update(*state, n.as_floats(n.x[rows]), n.y[rows])
  assert len(loss.sharding.device_set) == 1
  np.testing.assert_allclose(n.loss, loss, rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (n.state, state)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)

  n = of_library['A confusion matrix']
  assert n.matrix[3, 5] == ((n.y_test == 3) & (n.found == 5)).sum()
  assert n.matrix.trace() / n.matrix.sum() == pytest.approx(
    n.result.metrics['accuracy_test']
  )

  n = of_library['An ensemble']
  assert n.each.shape == (3, len(n.x_test), 10)
  np.testing.assert_allclose(n.mean.sum(-1), 1, atol=1e-5)
  # The logarithm is concave, so the ensemble is better than its average member.
  loss = -np.log(n.each[:, np.arange(len(n.y_test)), n.y_test])
  true = n.mean[np.arange(len(n.y_test)), n.y_test]
  assert -np.log(true).mean() < loss.mean()

  n = of_library['Gradients with respect to the input']
  assert n.gradient.shape == n.inputs.shape and n.after > n.before
  step = 1e-2 * n.gradient / jnp.linalg.norm(n.gradient)
  ends = [
    n.loss_of(n.trained.params, n.inputs + sign * step, n.y_test)
    for sign in (1, -1)
  ]
  slope = (ends[0] - ends[1]) / 2e-2
  np.testing.assert_allclose(slope, jnp.linalg.norm(n.gradient), rtol=1e-2)


@pytest.mark.slow
def test_the_recipes_of_the_library(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)  # for configs/
  of_library = run_page(tmp_path)
  check_runs(of_library)
  check_uses_of_a_model(of_library)


def test_the_notebook_of_the_library_is_the_page():
  notebook = (ROOT / 'colabs/library.ipynb').read_text()
  assert notebook == make_notebook.make(PAGE)
