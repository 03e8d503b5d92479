"""A run with an average of its parameters and GSAM: the use of both sets."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests import digits_run
import vit_jax
from vit_jax import base_config
from vit_jax import train
from vit_jax.checkpoint import weights_file
from vit_jax.commands import evaluate
from vit_jax.commands import export
from vit_jax.run import given
from vit_jax.run import setup
from vit_jax.tasks import classification

DECAY = 0.6


def make_config():
  config = digits_run.make_config(
    total_steps=4,
    checkpoint_every=2,
    loss='sigmoid',
    head_bias=-2.0,
    ema_decay=DECAY,
  )
  config.sam.update(dict(rho=0.1, rho_min=0.05, alpha=0.2))
  return config


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory):
  """Returns (workdir, state after each step, metrics of the last step)."""
  workdir, states = str(tmp_path_factory.mktemp('ema') / 'run'), []

  def keep(step, state, metrics):
    states.append(jax.device_get(state))

  result = train.train_and_evaluate(make_config(), workdir, hooks=[keep])
  return workdir, states, result.metrics


def test_the_average_follows_the_parameters(run):
  _, states, _ = run
  for before, after in zip(states, states[1:], strict=False):
    jax.tree.map(
      lambda old, new, found: np.testing.assert_allclose(
        found, DECAY * old + (1 - DECAY) * new, atol=1e-6
      ),
      *(before.ema, after.params, after.ema),
    )
  assert (states[-1].ema['head']['bias'] != -2).all()


@pytest.mark.slow
def test_a_resumed_run_has_the_same_average(run, tmp_path):
  workdir, states, metrics = run
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints/4')
  resumed = train.train_and_evaluate(make_config(), str(tmp_path / 'run'))
  digits_run.assert_equal(jax.device_get(resumed.state), states[-1])
  assert resumed.metrics['loss_test'] == metrics['loss_test']


def test_commands_use_the_average_or_with_raw_the_parameters(
  run, tmp_path, capsys
):
  workdir, states, metrics = run
  for flags, suffix, name in (([], '', 'ema'), (['--raw'], '_raw', 'params')):
    params = getattr(states[-1], name)
    capsys.readouterr()
    assert evaluate.main([workdir, '--json', *flags]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row['params_set'] == name
    for metric in ('loss', 'accuracy'):
      assert row[metric] == pytest.approx(
        metrics[f'{metric}_test{suffix}'], rel=1e-6
      )
    file = str(tmp_path / f'{name}.npz')
    assert export.main([workdir, file, *flags]) == 0
    digits_run.assert_equal(weights_file.load(file), params)
    again = vit_jax.load(file)
    assert again.params_set == name and again.loss == 'sigmoid'
    loaded = vit_jax.load(workdir, raw=bool(flags))
    digits_run.assert_equal(loaded.params, params)
  assert metrics['loss_test'] != metrics['loss_test_raw']
  # `config.pretrained=RUN` loads weights in this way.
  digits_run.assert_equal(weights_file.load(workdir), states[-1].ema)


def test_raw_needs_a_run_with_an_average(run, finished, tmp_path, capsys):
  file = str(tmp_path / 'weights.npz')
  assert export.main([run[0], file]) == 0
  for weights, where in (
    (file, f'{file} is not a run'),
    (finished[0], f'the run {finished[0]} has no moving average'),
  ):
    with pytest.raises(SystemExit) as stopped:
      export.main([weights, str(tmp_path / 'out.npz'), '--raw'])
    assert stopped.value.code == 2
    assert f'raw cannot be used: {where}' in capsys.readouterr().err


def test_two_averages_are_rejected():
  def make(config, data):
    made = classification.make(config, data)
    return dataclasses.replace(made, ema_decay=lambda step: 0.5)

  config = digits_run.make_config(ema_decay=0.9)
  given_ = given.Given(task=make)
  config = given_.in_config(config)
  mesh = setup.check(config, given_)
  with pytest.raises(ValueError, match='config.ema_decay=0.9 cannot be used'):
    setup.make_parts(config, mesh, setup.get_datasets(config), given_)
  with pytest.raises(ValueError, match='ema_warmup_power=0.5 needs'):
    base_config.validate(digits_run.make_config(ema_warmup_power=0.5))
