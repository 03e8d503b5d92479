"""Two tasks that are defined by a user, outside of the package.

The first task has no labels and changes the shapes of its batch on the device.
The second task has a frozen teacher and its own state, saved with the run.
"""

import dataclasses
import functools
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import digits_run
from vit_jax import checkpoint
from vit_jax import models
from vit_jax import train
from vit_jax.checkpoint import metadata
from vit_jax.commands import evaluate
from vit_jax.export import formats
from vit_jax.parallel import sharding
from vit_jax.run import evaluation
from vit_jax.run import given
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.run.start import initial_weights
from vit_jax.tasks import task

SETTINGS = dict(patch_size=4, classifier='gap')


def deployed(data, **where):
  return metadata.Description(
    name='testing',
    settings=SETTINGS,
    image_size=data.image_size,
    class_names=tuple(data.class_names),
    **where,
  )


# --- predicting the rotation of an image, without labels ---------------------


class Turned(nn.Module):
  """An encoder with a head for four rotations."""

  encoder: nn.Module

  @nn.compact
  def __call__(self, images, *, train):
    features = nn.gelu(self.encoder(images, train=train))
    return nn.Dense(4, name='turns')(features)


def make_turned(config, data):
  num_classes = len(data.class_names)
  model = Turned(
    models.get_model('testing', num_classes=num_classes, **SETTINGS)
  )

  def transform(key, batch, step, train):
    turns = jax.random.randint(key, len(batch['image']), 0, 4)
    views = jnp.stack([jnp.rot90(batch['image'], k, (1, 2)) for k in range(4)])
    views = views[turns, jnp.arange(len(turns))]
    mask = {'mask': batch['mask']} if 'mask' in batch else {}
    return {'views': views[:, :, :, None], 'turns': turns, **mask}

  def init(key, spec):
    return model.init(
      key, jnp.zeros((1, *spec['views'].shape[1:3], 3)), train=False
    )['params']

  def loss(params, batch, context):
    logits = model.apply(
      {'params': params},
      batch['views'][:, :, :, 0],
      train=context.train,
      rngs={'dropout': context.key},
    )
    log_probs = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probs, batch['turns'][:, None], 1)[:, 0]
    return losses, {'right': logits.argmax(-1) == batch['turns']}, None

  return task.Task(
    model=model,
    init=init,
    transform=transform,
    loss=loss,
    deployed=deployed(data, module='encoder'),
    main_metric='right',
    metric_direction='max',
  )


# --- learning from a frozen teacher with centered outputs --------------------


def make_taught(config, data, seed=0):
  num_classes = len(data.class_names)
  model = models.get_model('testing', num_classes=num_classes, **SETTINGS)

  def init(key, _=None):
    return model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)['params']

  def load_frozen(mesh):
    params = init(jax.random.key(100 + seed))
    return jax.tree.map(
      np.asarray,
      {
        **params,
        'head': jax.tree.map(
          lambda x: jax.random.normal(jax.random.key(seed), x.shape),
          params['head'],
        ),
      },
    )

  def loss(params, batch, context):
    taught = model.apply(
      {'params': context.frozen}, batch['image'], train=False
    )
    target = jax.nn.softmax(taught - context.task_state['centre'])
    logits = model.apply(
      {'params': params},
      batch['image'],
      train=context.train,
      rngs={'dropout': context.key},
    )
    losses = -(target * jax.nn.log_softmax(logits)).sum(-1)
    return losses, {}, taught.mean(0)

  def update_task_state(state, params, aux, step):
    return {
      'centre': 0.9 * state['centre'] + 0.1 * aux,
      'updates': state['updates'] + 1,
    }

  return task.Task(
    model=model,
    init=init,
    loss=loss,
    deployed=deployed(data),
    load_frozen=load_frozen,
    ema_decay=lambda step: 0.5,
    init_task_state=lambda params: {
      'centre': jnp.zeros(num_classes),
      'updates': jnp.int32(0),
    },
    update_task_state=update_task_state,
  )


MAKERS = {'turned': make_turned, 'taught': make_taught}


@functools.cache
def whole_run(folder, name):
  """Returns (workdir, result) of an uninterrupted run."""
  workdir = str(folder / name)
  return workdir, train.train_and_evaluate(
    digits_run.make_config(), workdir, task=MAKERS[name]
  )


@pytest.fixture(
  name='whole',
  params=[pytest.param('turned', marks=pytest.mark.slow), 'taught'],
  scope='module',
)
def fixture_whole(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  return request.param, *whole_run(folder, request.param)


def test_a_task_trains_and_logs_its_metrics(whole):
  name, workdir, (state, metrics, _) = whole
  assert int(state.step) == 8 and np.isfinite(metrics['loss_test'])
  rows = digits_run.rows_of(workdir)
  assert [row['step'] for row in rows] == [2, 4, 6, 8]
  names = {'turned': {'right_test', 'train_right'}, 'taught': {'loss_test_raw'}}
  assert names[name] <= rows[-1].keys()
  assert os.path.exists(f'{workdir}/progress.png')
  if name == 'taught':
    assert int(state.task_state['updates']) == 8
    assert np.abs(state.task_state['centre']).max() > 0.01


def test_a_task_resumes_bit_for_bit(whole, tmp_path):
  name, workdir, (state, *_) = whole
  run = functools.partial(
    train.train_and_evaluate,
    digits_run.make_config(),
    str(tmp_path),
    task=MAKERS[name],
  )
  with pytest.raises(digits_run.Interrupted):
    run(hooks=[digits_run.interrupt_at(6)])
  digits_run.assert_equal(run().state, state)
  assert digits_run.without_rates(digits_run.rows_of(tmp_path)) == (
    digits_run.without_rates(digits_run.rows_of(workdir))
  )


def test_evaluation_only_gives_the_same_metrics(whole):
  name, workdir, (_, metrics, _) = whole
  row = evaluation.evaluate_only(
    digits_run.make_config(), workdir, task=MAKERS[name]
  )
  assert row['loss'] == pytest.approx(metrics['loss_test'], rel=1e-6)
  assert row['count'] == 377


def test_the_model_is_exported_and_loaded_without_the_task(whole, tmp_path):
  name, workdir, (state, *_) = whole
  trained = checkpoint.load_model(workdir)
  expected = state.params['encoder'] if name == 'turned' else state.params
  digits_run.assert_equal(trained.params, jax.device_get(expected))
  formats.export(trained, str(tmp_path / 'w.npz'))
  again = checkpoint.load_model(str(tmp_path / 'w.npz'))
  digits_run.assert_equal(again.params, trained.params)
  assert again.class_names == tuple('0123456789')


def after_two_updates(num_devices, accum_steps, **lengths):
  """Returns the state of the second task, without dropout."""
  config = digits_run.make_config(accum_steps=accum_steps)
  mesh = sharding.make_mesh(jax.devices()[:num_devices], **lengths)
  maker = functools.partial(make_taught)
  parts = setup.make_parts(
    config, mesh, setup.load_data(config, mesh), given.Given(task=maker)
  )
  frozen, _ = initial_weights.load_frozen(parts)
  state = parts.init_fn(parts.keys.init)
  update = parts.make_update(accum_steps)
  for batch, _ in zip(parts.data.train(), range(2), strict=False):
    state, _ = update(state, sharding.put_batch(batch, mesh), frozen)
  return jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize(
  'num_devices, accum_steps, lengths',
  [(8, 4, {}), (4, 1, {'fsdp': 2, 'data': 1, 'tensor': 2})],
)
def test_devices_and_micro_batches_change_nothing(
  num_devices, accum_steps, lengths, monkeypatch
):
  wide = dict(hidden_size=32, mlp_dim=256, dropout_rate=0.0)
  monkeypatch.setattr(f'{__name__}.SETTINGS', {**SETTINGS, **wide})
  one = after_two_updates(1, 1)
  other = after_two_updates(num_devices, accum_steps, **lengths)
  for name in ('params', 'ema', 'task_state'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      getattr(one, name),
      getattr(other, name),
    )


def test_the_average_starts_from_the_parameters_and_follows_them():
  config = digits_run.make_config(accum_steps=1, warmup_steps=0)
  mesh = sharding.make_mesh(jax.devices()[:1])
  parts = setup.make_parts(
    config, mesh, setup.load_data(config, mesh), given.Given(task=make_taught)
  )
  frozen, _ = initial_weights.load_frozen(parts)
  state = parts.init_fn(parts.keys.init)
  before = jax.device_get(state)
  digits_run.assert_equal(before.ema, before.params)
  batch = sharding.put_batch(next(parts.data.train()), mesh)
  after, _ = parts.make_update(1)(state, batch, frozen)
  jax.tree.map(
    lambda old, new, ema: np.testing.assert_allclose(
      ema, (old + new) / 2, atol=1e-7
    ),
    before.params,
    jax.device_get(after.params),
    jax.device_get(after.ema),
  )


def test_another_teacher_is_detected_on_resuming(whole, monkeypatch):
  """Also if the task looks equal, as with a teacher from a file."""
  monkeypatch.setattr(run_files, 'check_given', lambda *_: None)
  name, workdir, _ = whole
  if name == 'taught':
    with pytest.raises(
      ValueError, match=f'frozen arrays.* {workdir} .*workdir='
    ):
      train.train_and_evaluate(
        digits_run.make_config(),
        workdir,
        task=functools.partial(make_taught, seed=1),
      )
  else:
    assert not os.path.exists(f'{workdir}/frozen.json')


def test_deployed_json_describes_the_deployed_model(whole):
  name, workdir, _ = whole
  with open(f'{workdir}/deployed.json', encoding='utf-8') as file:
    stored = json.load(file)['vit_jax']
  assert stored['model'] == {'name': 'testing', **SETTINGS}
  assert stored.get('module', '') == ('encoder' if name == 'turned' else '')
  assert stored['task'] == metadata.read_config(workdir)['task'] == 'own'


def test_the_metrics_of_ones_own_task_need_its_python(whole, capsys):
  _, workdir, _ = whole
  with pytest.raises(SystemExit) as stop:
    evaluate.main([workdir])
  assert stop.value.code == 2
  assert 'a task of your own' in capsys.readouterr().err
  with pytest.raises(ValueError, match='task of your own.*evaluate_only'):
    evaluation.evaluate_only(digits_run.make_config(), workdir)


@pytest.mark.slow
def test_a_loss_of_ones_own_is_not_reported_without_its_python(
  tmp_path, capsys
):
  def loss_fn(logits, labels):
    return jnp.square(logits - labels).sum(-1)

  config = digits_run.make_config(total_steps=3, eval_every=0)
  _, metrics, *_ = train.train_and_evaluate(
    config, str(tmp_path), loss_fn=loss_fn
  )
  row = evaluation.evaluate_only(config, str(tmp_path))
  assert 'loss' not in row and row['accuracy'] == metrics['accuracy_test']
  assert 'loss is not reported' in capsys.readouterr().err
  row = evaluation.evaluate_only(config, str(tmp_path), loss_fn=loss_fn)
  assert row['loss'] == pytest.approx(metrics['loss_test'], rel=1e-5)


def test_initial_weights_are_loaded_into_the_deployed_module(whole, tmp_path):
  """The weights are an export of the second task's model."""
  name, workdir, _ = whole
  if name != 'taught':
    return
  trained = checkpoint.load_model(workdir)
  checkpoint.save(tmp_path / 'w.npz', trained.params)
  config = digits_run.make_config(
    pretrained=str(tmp_path / 'w.npz'), total_steps=3, base_lr=1e-9
  )
  config.model.update(SETTINGS)
  state, *_ = train.train_and_evaluate(
    config, str(tmp_path / 'run'), task=make_turned
  )
  np.testing.assert_allclose(
    state.params['encoder']['embedding']['kernel'],
    trained.params['embedding']['kernel'],
    atol=1e-6,
  )


def test_skipped_updates_do_not_change_average_and_task_state(tmp_path):
  """The gradients of every third update are not finite."""

  def make(config, data):
    made = make_taught(config, data)

    def loss(params, batch, context):
      losses, metrics, aux = made.loss(params, batch, context)
      bad = context.train & (context.step % 3 == 2)
      return losses * jnp.where(bad, jnp.nan, 1.0), metrics, aux

    return task.Task(
      **{f: getattr(made, f) for f in made.__dataclass_fields__}
      | {'loss': loss}
    )

  state, *_ = train.train_and_evaluate(
    digits_run.make_config(skip_nonfinite=1, accum_steps=1),
    str(tmp_path),
    task=make,
  )
  assert int(state.task_state['updates']) == 6  # of 8
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.ema))


def test_a_metric_that_is_not_finite_is_named(tmp_path):
  def make(config, data):
    made = make_taught(config, data)

    def loss(params, batch, context):
      losses, metrics, aux = made.loss(params, batch, context)
      return losses, {**metrics, 'gap': jnp.nan * losses}, aux

    return dataclasses.replace(made, loss=loss)

  with pytest.raises(
    ValueError, match='the metric train_gap .* is nan at step 1'
  ):
    train.train_and_evaluate(
      digits_run.make_config(accum_steps=1), str(tmp_path), task=make
    )


@pytest.mark.parametrize(
  'wrong, message',
  [
    (
      {
        'transform': lambda key, batch, step, train: {
          'image': batch['image'][:3]
        }
      },
      r"transform .*'image' .*\[3, 8.* 32 examples",
    ),
    (
      {
        'loss': lambda params, batch, context: (
          jnp.zeros(len(batch['image'])),
          {'x': jnp.float32(0)},
          None,
        )
      },
      r'x has the shape \[\] for 16 examples',
    ),
  ],
)
def test_wrong_shapes_are_rejected_before_the_first_step(
  tmp_path, wrong, message
):
  def make(config, data):
    made = make_taught(config, data)
    return task.Task(
      **{f: getattr(made, f) for f in made.__dataclass_fields__} | wrong
    )

  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(
      digits_run.make_config(),
      str(tmp_path),
      task=make,
      hooks=[lambda *_: 1 / 0],
    )


def test_names_of_tasks(tmp_path):
  config = digits_run.make_config(task='clasification')
  with pytest.raises(ValueError, match="'clasification'.* classification"):
    train.train_and_evaluate(config, str(tmp_path))
  with pytest.raises(ValueError, match='loss_fn cannot be used, because task'):
    train.train_and_evaluate(
      digits_run.make_config(),
      str(tmp_path),
      task=make_turned,
      loss_fn=lambda logits, labels: logits[:, 0],
    )
  with pytest.raises(ValueError, match="metric_direction='up' .*max, min"):
    task.Task(
      model=None, init=1, loss=None, deployed=None, metric_direction='up'
    )


def test_a_user_task_accepts_settings_that_classification_rejects():
  config = digits_run.make_config()
  config.model.classifier = 'unpooled'
  with pytest.raises(ValueError, match="'unpooled' .*token, gap or map"):
    setup.check(config)
  setup.check(config, given.Given(task=make_turned))
