"""The length of a run: epochs, patience, and training for longer."""

import shutil

import numpy as np
import pytest

from tests.digits_run import assert_equal
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import without_rates
from vit_jax import train
from vit_jax.optim import run_length
from vit_jax.run import given
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.tasks import classification


def test_epochs_count_training_examples():
  config = make_config(total_steps=0, total_epochs=0.2, warmup_steps=1)
  assert run_length.resolve(config, 1420) == (9, 1)  # steps of 32 images
  config.update(dict(warmup_steps=0, warmup_epochs=0.1, validation=0.5))
  assert run_length.resolve(config, 1420) == (9, 4)
  assert run_length.resolve(config, 10) == (1, 1)
  data = setup.get_datasets(config)
  parts = setup.make_parts(config, setup.check(config), data)
  assert parts.total_steps == round(0.2 * 710 / 32)
  assert float(parts.schedule(2)) == pytest.approx(config.base_lr)
  assert float(parts.schedule(1)) == pytest.approx(config.base_lr / 2)
  assert float(parts.schedule(parts.total_steps)) == pytest.approx(0)
  config.total_steps = 100
  with pytest.raises(ValueError, match='total_steps=100 and .*=0.2 both give'):
    setup.check(config)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'warmup_steps': 2}, '=2 and config.warmup_epochs=1.0 are both set'),
    (
      {'total_steps': 0, 'total_epochs': 1.0},
      'warmup_epochs=1.0 must be .*total_epochs=1.0',
    ),
    ({'warmup_epochs': -1.0}, 'config.warmup_epochs=-1.0 must be at least 0'),
    # Only the number of images shows these.
    ({'total_steps': 10}, '1.0 must be .* 10 updates, and the warm-up 44'),
    (
      {'total_steps': 0, 'total_epochs': 1.001},
      '1.0 must be .* 44 updates, and the warm-up 44',
    ),
  ],
)
def test_a_warm_up_in_epochs_that_does_not_fit_is_named(settings, message):
  config = make_config(warmup_steps=0, warmup_epochs=1.0)
  config.update(settings)
  with pytest.raises(ValueError, match=message):
    mesh = setup.check(config)
    setup.make_parts(config, mesh, setup.get_datasets(config))


def test_a_warm_up_in_epochs_needs_the_number_of_images():
  config = make_config(warmup_steps=0, warmup_epochs=0.1)
  with pytest.raises(ValueError, match='or set config.warmup_steps in place'):
    run_length.resolve(config, None)


@pytest.fixture(name='long', scope='module')
def fixture_long(tmp_path_factory):
  """Returns (settings, folder after 4 steps, folder and state after 6)."""
  settings = dict(decay_type='constant', total_steps=6, accum_steps=1)
  short, whole = (tmp_path_factory.mktemp(name) for name in ('short', 'whole'))
  train.train_and_evaluate(
    make_config(**{**settings, 'total_steps': 4}), str(short)
  )
  state, *_ = train.train_and_evaluate(make_config(**settings), str(whole))
  return settings, short, whole, state


def test_a_run_that_was_made_longer_is_bit_for_bit_equal(long, tmp_path):
  settings, short, whole, state = long
  shutil.copytree(short, tmp_path / 'run')
  longer, *_ = train.train_and_evaluate(
    make_config(**settings), str(tmp_path / 'run')
  )
  assert_equal(longer, state)
  assert without_rates(rows_of(tmp_path / 'run')) == (
    without_rates(rows_of(whole))
  )


@pytest.mark.parametrize(
  'settings, step, changes',
  [
    ({'decay_type': 'cosine'}, 6, True),
    ({'decay_type': 'linear'}, 6, True),
    ({'decay_type': 'constant', 'cooldown_steps': 4}, 6, True),
    ({'decay_type': 'constant', 'cooldown_steps': 4}, 4, False),
    ({'decay_type': 'rsqrt'}, 8, False),
    ({'decay_type': 'step', 'drop_steps': (3,)}, 6, False),
    ({'decay_type': 'constant', 'sam': {'rho': 0.1}}, 6, False),
    ({'decay_type': 'rsqrt', 'sam': {'rho': 0.1, 'rho_min': 0.05}}, 6, True),
    ({'decay_type': 'constant', 'task': 'dino'}, 6, True),
    (
      {'decay_type': 'constant', 'optimizer': 'adamw', 'weight_decay_end': 0.1},
      6,
      True,
    ),
  ],
)
def test_another_length_is_rejected_if_it_changes_completed_steps(
  tmp_path, settings, step, changes
):
  config = make_config(**settings, warmup_steps=1)
  data = setup.get_datasets(config)
  task = classification.make(config, data)
  run_files.save(
    str(tmp_path), config, data, task.deployed, given.Given(), None
  )
  longer = make_config(**settings, warmup_steps=1, total_steps=12)
  if not changes:
    return run_files.check_config(str(tmp_path), longer, step)
  with pytest.raises(
    ValueError,
    match=(
      '(?s)total_steps=8 in the folder, 12 now.*of the 6 '
      f'completed updates.*config.pretrained={tmp_path} workdir='
    ),
  ):
    run_files.check_config(str(tmp_path), longer, step)


@pytest.mark.slow
def test_other_intervals_change_no_bit(finished, tmp_path):
  workdir, state, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints/8')
  resumed, *_ = train.train_and_evaluate(
    make_config(log_every=1, eval_every=2, checkpoint_every=3),
    str(tmp_path / 'run'),
  )
  assert_equal(resumed, state)
  rows = rows_of(tmp_path / 'run')
  assert [row['step'] for row in rows] == [2, 4, 5, 6, 7, 8]
  assert 'accuracy_test' in rows[3] and 'accuracy_test' not in rows[2]


def test_patience_stops_the_run_and_the_test_split_is_read_once(
  tmp_path, capsys
):
  """The watched metric comes from a caller's evaluator."""
  values = iter([0.1, 0.9, 0.3, 0.2, 0.5])
  config = make_config(
    validation=200,
    total_steps=20,
    eval_every=2,
    checkpoint_every=0,
    keep=1,
    patience=2,
    best_metric='luck_mine',
    best_direction='max',
  )
  evaluators = {'mine': lambda state: {'luck': next(values)}}
  state, results, *_ = train.train_and_evaluate(
    config, str(tmp_path), evaluators=evaluators
  )
  assert int(state.step) == results['step'] == 8
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows if 'accuracy_validation' in row] == [
    2,
    4,
    6,
    8,
  ]
  assert [row['step'] for row in rows if 'accuracy_test' in row] == [8]
  output = capsys.readouterr().err
  for text in (
    'digits: 1220 training and 200 validation and 377 test images',
    'stopping at step 8: luck_mine has not improved in 2 evaluation(s)',
    f'done: accuracy {100 * results["accuracy_test"]:.2f} % on 377 test',
    f'best luck_mine after 4 steps: {tmp_path}/checkpoints/4',
  ):
    assert text in output, (text, output)
  # The repeated call does no step and no evaluation.
  again, same, *_ = train.train_and_evaluate(
    config, str(tmp_path), evaluators=evaluators
  )
  assert_equal(again, state)
  assert same == results and 'first step' not in capsys.readouterr().err
  with pytest.raises(
    ValueError, match="'accuracy_test' .* accuracy_validation"
  ):
    train.train_and_evaluate(
      make_config(validation=200, best_metric='accuracy_test'),
      str(tmp_path / 'other'),
    )


@pytest.mark.slow
def test_the_best_by_validation_is_kept(tmp_path):
  train.train_and_evaluate(
    make_config(
      validation=0.2,
      eval_every=2,
      checkpoint_every=0,
      keep=1,
      best_metric='loss_validation',
    ),
    str(tmp_path),
  )
  rows = [row for row in rows_of(tmp_path) if 'loss_validation' in row]
  best = min(rows, key=lambda row: row['loss_validation'])['step']
  assert (tmp_path / f'checkpoints/{best}').is_dir()
  assert np.isfinite(rows[-1]['loss_test'])
