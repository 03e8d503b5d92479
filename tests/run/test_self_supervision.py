"""Whole runs without labels, and what follows them."""

import os
import re

import jax
import numpy as np
from PIL import Image
import pytest

from tests import digits_run
from tests.parallel import test_processes
from vit_jax import checkpoint
from vit_jax import train
from vit_jax.commands import embed
from vit_jax.commands import evaluate
from vit_jax.commands import export
from vit_jax.commands import predict
from vit_jax.cost import dry_run
from vit_jax.parallel import sharding
from vit_jax.run import given
from vit_jax.run import setup
from vit_jax.run.start import adopted_settings
from vit_jax.run.start import initial_weights

# A run of DINO in several processes. Process 0 writes the final center.
SCRIPT = """
import sys
import numpy as np
from tests.run.test_self_supervision import make_config
from vit_jax import console, train
from vit_jax.parallel import processes

coordinator, count, index, workdir, _ = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
if not processes.is_main():
  console.be_silent()
state, *_ = train.train_and_evaluate(make_config('dino'), workdir)
if processes.is_main():
  np.save(workdir + '/center.npy', state.task_state['center'])
"""

TASKS = ('mae', 'masked_patches', 'dino')
MODEL = dict(
  name='testing',
  patch_size=2,
  hidden_size=16,
  num_heads=2,
  dropout_rate=0.0,
  positions='sincos2d',
)


def make_config(task, **settings):
  config = digits_run.make_config(task=task, labels='none', **settings)
  config.model.update(MODEL)
  own = {
    'dino': dict(prototypes=16, local_views=2, local_size=4),
    'mae': dict(decoder_size=16, decoder_layers=1, decoder_heads=2),
  }
  if task in own:
    config[task].update(own[task])
  return config


@pytest.fixture(name='photos', scope='module')
def fixture_photos(tmp_path_factory):
  """Returns a folder with images at several depths, without classes."""
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for i in range(70):
    place = folder / ('2024', '2024/june', 'other')[i % 3]
    place.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((12, 9)).save(place / f'{i}.png')
  return folder


@pytest.fixture(
  name='whole',
  params=[
    'mae',
    *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS[1:]),
  ],
  scope='module',
)
def fixture_whole(request, photos, tmp_path_factory):
  """Returns (config, workdir, result) of an uninterrupted run."""
  config = make_config(request.param, dataset=str(photos))
  workdir = str(tmp_path_factory.mktemp(request.param))
  return config, workdir, train.train_and_evaluate(config, workdir)


def test_a_run_reports_the_loss_of_unseen_images_and_draws_them(whole):
  config, workdir, (_, metrics, _) = whole
  assert np.isfinite(metrics['loss_test'])
  assert not any('accuracy' in name for name in metrics)
  if config.task != 'dino':
    picture = np.asarray(Image.open(f'{workdir}/reconstructions_test.png'))
    assert picture.shape[0] > 3 * 90 and picture.std() > 10
  assert not os.path.exists(f'{workdir}/class_names.json') or (
    not checkpoint.load_model(workdir).class_names
  )


def test_the_encoder_is_fine_tuned_with_nothing_missing(whole, tmp_path):
  _, workdir, (state, *_) = whole
  config = digits_run.make_config(
    pretrained=workdir, total_steps=1, warmup_steps=0, base_lr=1e-30
  )
  config.model.update({**MODEL, 'positions': 'learned'})
  found = train.train_and_evaluate(config, str(tmp_path)).state.params
  trained = state.params if state.ema is None else state.ema
  encoder = jax.device_get(trained['encoder'])
  table = found['Transformer'].pop('posembed_input')['pos_embedding']
  assert table.shape == (1, 17, 16) and not np.any(table[:, 0])
  assert set(found) == {*encoder, 'head'}
  del found['head']
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, encoder
  )


def test_a_run_of_mae_continues_with_its_decoder(whole, capsys):
  config, workdir, (state, *_) = whole
  if config.task != 'mae':
    return
  settings = {'decoder_size': 512, 'decoder_layers': 8, 'decoder_heads': 16}
  config = config.copy_and_resolve_references()
  config.pretrained = workdir
  config.mae.update(settings)  # the defaults; those of the run are used
  config = adopted_settings.adopt(config)
  mesh = setup.check(config)
  loaded, _ = initial_weights.find(config)
  parts = setup.make_parts(config, mesh, setup.load_data(config, mesh))
  zeros = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params
  )
  fitted = initial_weights.fit(loaded, config, parts, zeros)
  digits_run.assert_equal(fitted, jax.device_get(state.params))
  assert 'no decoder' not in capsys.readouterr().err


def test_commands_use_the_encoder_of_a_run(whole, photos, tmp_path, capsys):
  config, workdir, _ = whole
  dry_run.show(config)
  shown = capsys.readouterr().err
  assert 'memory per device in training' in shown and 'GFLOP' in shown
  out = tmp_path / 'features.npz'
  assert embed.main([workdir, str(photos), f'--out={out}']) == 0
  with np.load(out) as stored:
    assert stored['feature'].shape == (70, 16)
  arguments = '--dataset=digits', '--with=knn', '--knn.k=5', '--batch=64'
  results = f'--workdir={tmp_path}/results'
  assert evaluate.main([workdir, *arguments, results]) == 0
  assert export.main([workdir, str(tmp_path / 'encoder.safetensors')]) == 0
  exported = checkpoint.load_model(str(tmp_path / 'encoder.safetensors'))
  expected = checkpoint.load_model(workdir)
  digits_run.assert_equal(exported.params, expected.params)
  with pytest.raises(SystemExit):
    predict.main([workdir, str(photos)])
  assert 'the weights have no head' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(whole, tmp_path):
  config, _, (state, *_) = whole
  with pytest.raises(digits_run.Interrupted):
    train.train_and_evaluate(
      config, str(tmp_path), hooks=[digits_run.interrupt_at(6)]
    )
  resumed = train.train_and_evaluate(config, str(tmp_path))
  digits_run.assert_equal(resumed.state, state)


def three_updates(task, num_devices, accum_steps):
  """Returns (losses, what DINO knows of the teacher's outputs)."""
  config = make_config(task, accum_steps=accum_steps)
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  data = setup.load_data(config, mesh)
  parts = setup.make_parts(config, mesh, data, given.Given())
  state = parts.init_fn(parts.keys.init)
  update, losses, information = parts.make_update(accum_steps), [], []
  for batch, _ in zip(parts.data.train(), range(3), strict=False):
    state, found = update(state, sharding.put_batch(batch, mesh), None)
    losses.append(float(found['train_loss']))
    information.append(float(found.get('train_information', 0)))
  return losses, (jax.device_get(state.task_state), np.array(information))


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_devices_and_micro_batches_change_no_mask_and_no_center(task):
  expected, center = three_updates(task, 1, 1)
  for num_devices, accum_steps in ((8, 1), (1, 4)):
    found, other = three_updates(task, num_devices, accum_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      *(other, center),
    )


@pytest.mark.slow
def test_processes_share_the_center_of_dino(tmp_path):
  (tmp_path / 'two').mkdir()
  started = test_processes.start_all(2, tmp_path / 'two', script=SCRIPT)
  state = train.train_and_evaluate(
    make_config('dino'), str(tmp_path / 'alone')
  ).state
  test_processes.finish(started)
  rows, others = (
    digits_run.without_rates(digits_run.rows_of(tmp_path / x))
    for x in ('alone', 'two')
  )
  for row, other in zip(rows, others, strict=True):
    assert row == pytest.approx(other, rel=1e-4)
  center = jax.device_get(state.task_state['center'])
  assert abs(center).max() > 1e-3
  np.testing.assert_allclose(
    np.load(tmp_path / 'two/center.npy'), center, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', ['Mixer-B_16', 'BiT-R50x1', 'R50+ViT-B_16'])
def test_a_wrong_model_is_an_error_before_the_data_are_read(task, name):
  config = make_config(task, dataset='no/such/folder')
  config.model.update({**dict.fromkeys(MODEL), 'name': name})
  with pytest.raises(ValueError, match=f"{re.escape(name)}' has .*ViT-B_16"):
    setup.check(config)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'mae.mask_ratio': 1.0}, 'mask_ratio=1.0 must be between 0 and 1'),
    ({'mae.mask_ratio': 0.95}, '16 patches .*, 16 would be hidden and 0'),
    ({'model.patch_size': 8}, 'of the 1 patches .*config.model.patch_size'),
    ({'mae.decoder_size': 12}, 'decoder_size=12 must be a multiple of 4 times'),
    ({'model.name': 'Mixer-B_16'}, "Mixer-B_16' has no tokens .*ViT-B_16"),
    ({'model.classifier': 'map'}, "classifier='map' cannot be used"),
    ({'model.patch_dropout_rate': 0.5}, 'already hides patches'),
    *(
      ({'task': name}, f'labels=none ignores all labels, but .*={name} needs')
      for name in ('classification', 'multi_label', 'regression')
    ),
    *(
      ({'task': name, 'model.drop_remainder': True}, 'drop_remainder=True cann')
      for name in ('mae', 'masked_patches')
    ),
    *(
      ({'task': 'dino', 'model.positions': name}, f"'{name}' .*=sincos2d")
      for name in ('learned', 'learned_2d', 'relative', 'relative_table')
    ),
    ({'task': 'dino', 'augment.erasing': 0.25}, 'augment.erasing=0.25 cannot'),
    ({'task': 'dino', 'augment.policy': 'trivial'}, "policy='trivial' cannot"),
    ({'task': 'dino', 'dino.local_size': 5}, 'local_size=5: .*Use 4 or 6'),
    ({'task': 'dino', 'dino.local_max_area': 0.01}, 'in this order'),
    ({'task': 'dino', 'data_on': 'device'}, "data_on='host'"),
  ],
)
def test_wrong_settings_are_refused_before_any_step(
  settings, message, tmp_path
):
  config = make_config(settings.get('task', 'mae'))
  if 'model.name' in settings:
    config.model.update({**dict.fromkeys(MODEL), 'patch_size': 4})
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(config, str(tmp_path))
