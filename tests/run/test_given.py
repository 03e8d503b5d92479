"""Python objects of the caller: hooks that stop, and what a run remembers."""

import errno
from unittest import mock

import jax
import numpy as np
import optax
import pytest

from tests.digits_run import assert_equal
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import train
import vit_jax
from vit_jax import train as training
from vit_jax.run import active_run


def run(workdir, total_steps=8, **given):
  config = make_config(total_steps=total_steps, accum_steps=1)
  return training.train_and_evaluate(config, str(workdir), **given)


def smooth(logits, labels):
  return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, 0.1))


def negative(logits, labels):
  return -smooth(logits, labels)


def norm(state):
  return {'norm': optax.tree.norm(state.params)}


def stop_at(step, reason=''):
  def hook(now, state, metrics):
    if now == step:
      raise vit_jax.Stop(reason)

  return hook


# --- stopping ----------------------------------------------------------------


def test_a_hook_ends_a_run_which_keeps_its_state_and_results(tmp_path, capfd):
  steps = []
  result = run(
    tmp_path, hooks=[stop_at(3, 'enough'), lambda step, *_: steps.append(step)]
  )
  assert 'stopping at step 3: enough' in capfd.readouterr().err
  assert steps == [1, 2, 3]
  assert int(result.state.step) == result.metrics['step'] == 3
  assert (
    rows_of(tmp_path)[-1]['accuracy_test'] == (result.metrics['accuracy_test'])
  )
  again = run(tmp_path, hooks=[stop_at(3)])
  assert_equal(again.params, result.params)
  assert again.metrics == result.metrics
  whole, _, _ = run(tmp_path)
  assert_equal(whole.params, run(tmp_path / 'whole').params)


@pytest.mark.slow
def test_a_hook_gets_the_evaluation_and_may_keep_a_copy_of_the_state(tmp_path):
  kept, accuracies = [], {}

  def hook(step, state, metrics):
    kept.append((jax.device_get(state.params), state.copy()))
    if 'accuracy_test' in metrics:
      accuracies[step] = metrics['accuracy_test']

  result = run(tmp_path, hooks=[hook])
  assert sorted(accuracies) == [4, 8]
  assert accuracies[8] == result.metrics['accuracy_test']
  for expected, copy in kept:
    assert_equal(copy.params, expected)
  assert any(
    (a != b).any()
    for a, b in zip(
      jax.tree.leaves(kept[0][0]), jax.tree.leaves(kept[1][0]), strict=True
    )
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind', [pytest.param('hooks', marks=pytest.mark.slow), 'evaluators']
)
def test_an_error_of_a_hook_or_an_evaluator_is_named_and_keeps_the_state(
  tmp_path, capfd, kind
):
  def broken(*arguments):
    if kind == 'evaluators' or arguments[0] == 4:
      raise ZeroDivisionError('no denominator')
    return {}

  given = (
    {'hooks': [broken]}
    if kind == 'hooks'
    else {'evaluators': {'ratio': broken}}
  )
  with pytest.raises(ZeroDivisionError, match='no denominator') as error:
    run(tmp_path, **given)
  name = 'broken' if kind == 'hooks' else "'ratio'"
  assert f'{name} failed at step 4. The last checkpoint is from step 4' in (
    capfd.readouterr().err
  )
  assert name in error.value.__notes__[-1]
  # The corrected evaluator is another function with the same name.
  given = {'evaluators': {'ratio': norm}} if kind == 'evaluators' else {}
  result = run(tmp_path, **given)
  assert 'resuming from step 4' in capfd.readouterr().err
  assert_equal(result.params, run(tmp_path / 'whole').params)


def test_metrics_that_cannot_be_written_do_not_lose_the_state(capsys):
  class Metrics:
    def write(self, step, row):
      raise OSError(errno.ENOSPC, 'No space left on device')

  saved = []

  class Checkpoints:
    wait = mock.Mock()

    def save(self, step, state):
      saved.append((step, state))

    def latest_step(self):
      return saved[-1][0]

  checkpoints = Checkpoints()
  run = active_run.ActiveRun(
    *(None, None, (), None, checkpoints, Metrics()), num_devices=1, advice=''
  )
  run._row = {'train_loss': 1.0}
  with pytest.raises(OSError, match='No space'):
    run.write(4, 'the state')
  assert saved == [(4, 'the state')]
  assert 'The last checkpoint is from step 4' in capsys.readouterr().err
  # The state cannot be saved either.
  checkpoints.wait.side_effect = OSError('a checkpoint cannot be written')
  with pytest.raises(OSError, match='a checkpoint cannot'):
    run.write(4, 'the state')
  assert 'The last checkpoint' not in capsys.readouterr().err


# --- what the folder remembers -----------------------------------------------


@pytest.mark.parametrize(
  'before, now, message',
  [
    ({}, {'loss_fn': negative}, 'loss_fn: not given in the folder, .*negative'),
    ({'loss_fn': smooth}, {}, 'loss_fn: .*smooth in the folder, not given now'),
    (
      {'loss_fn': smooth, 'optimizer': optax.sgd(0.1)},
      {'loss_fn': negative, 'optimizer': optax.sgd(0.2)},
      '(?s)loss_fn: .*smooth in .*negative now\n  optimizer: .*has changed',
    ),
    (
      {'evaluators': {'own': norm}},
      {'evaluators': {'own': lambda state: {'norm': 0.0}}},
      r"evaluators\['own'\]: .*norm in the folder, .*lambda.* now",
    ),
  ],
)
def test_other_objects_are_refused(tmp_path, before, now, message):
  """The evaluator is rejected after a finished run, the others before."""
  hooks = [] if 'evaluators' in now else [stop_at(3)]
  run(tmp_path, total_steps=4, hooks=hooks, **before)
  with pytest.raises(ValueError, match=message):
    run(tmp_path, total_steps=4, **now)


@pytest.mark.slow
def test_a_new_evaluator_of_a_finished_run_is_measured(tmp_path):
  _, state, results = train(tmp_path)
  calls = []

  def counted(state):
    calls.append(int(state.step))
    return norm(state)

  counted.fingerprint = 'norm'  # the list changes at each call
  for _ in range(2):
    again = training.train_and_evaluate(
      make_config(), str(tmp_path), evaluators={'own': counted}
    )
    expected = float(optax.tree.norm(state.params))
    np.testing.assert_allclose(again.metrics['norm_own'], expected, rtol=1e-6)
    assert results.items() <= again.metrics.items()
  assert calls == [8]
  assert rows_of(tmp_path)[-1] == again.metrics


@pytest.mark.slow
def test_an_evaluator_may_end_in_the_name_of_another(tmp_path):
  """The metric norm_my_test belongs to 'my_test', not to the test split."""
  result = run(tmp_path, total_steps=3, evaluators={'my_test': norm})
  assert {'accuracy_test', 'norm_my_test'} <= result.metrics.keys()


@pytest.mark.slow
def test_the_result_names_the_best_step(tmp_path):
  config = make_config(best_metric='accuracy_test')
  result = training.train_and_evaluate(config, str(tmp_path))
  values = {
    row['step']: row['accuracy_test']
    for row in rows_of(tmp_path)
    if 'accuracy_test' in row
  }
  assert values[result.best_step] == max(values.values())
  assert result.params is result.state.params
