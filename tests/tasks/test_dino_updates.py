"""Updates of DINO, against the equations of the paper in NumPy.

Shapes:  B batch · V views · K prototypes
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests import digits_run
from vit_jax import models
from vit_jax.models.pretraining import dino as dino_model
from vit_jax.parallel import sharding
from vit_jax.run import setup
from vit_jax.tasks import dino
from vit_jax.tasks import task

K, BATCH, STEPS, FROZEN = 6, 8, 20, 3
SETTINGS = dict(
  patch_size=2,
  hidden_size=8,
  mlp_dim=8,
  num_heads=2,
  num_layers=1,
  dropout_rate=0.0,
  positions='sincos2d',
)


def make_parts():
  config = digits_run.make_config(
    task='dino', labels='none', batch=BATCH, accum_steps=1, total_steps=STEPS
  )
  config.model.update(SETTINGS)
  config.dino.update(dict(prototypes=K, local_views=1, local_size=4))
  config.dino.update(dict(momentum=0.0, colors=False, frozen_epochs=0.017))
  config.dino.update(dict(first_teacher_temperature=0.02, temperature_steps=10))
  config.update(dict(optimizer='adamw', base_lr=1e-3, weight_decay=0.1))
  config.update(dict(warmup_steps=0, momentum_dtype='float32'))
  mesh = setup.check(config)
  mesh = sharding.make_mesh(jax.devices()[:1])
  return setup.make_parts(config, mesh, setup.load_data(config, mesh))


@dataclasses.dataclass
class Run:
  """A compiled update; it keeps the state that it gets."""

  parts: setup.Parts
  batch: dict
  start: object  # a TrainState with random values

  def __post_init__(self):
    self._update = self.parts.make_update(1)

  def at(self, step):
    """Returns `start` at another step."""
    step = jax.device_put(jnp.int32(step), self.start.step.sharding)
    return self.start.replace(step=step)

  def update(self, state):
    return self._update(state.copy(), self.batch, None)


@pytest.fixture(name='run', scope='module')
def fixture_run():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dino_model, '_HIDDEN', 16)  # less to compile
    yield make_run()


def make_run():
  parts = make_parts()
  state = parts.init_fn(parts.keys.init)
  rng = np.random.default_rng(0)

  def other(tree):
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), tree)

  new = state.replace(
    params=other(state.params),
    ema=other(state.params),
    task_state={
      'center': 0.1 * rng.normal(size=K),
      'distribution': rng.dirichlet(np.ones(K)),
    },
  )
  state = jax.tree.map(
    lambda x, old: jax.device_put(np.asarray(x, old.dtype), old.sharding),
    *(new, state),
  )
  batch = sharding.put_batch(next(parts.data.train()), parts.mesh)
  return Run(parts, batch, state)


@jax.jit
def encode(params, images):
  encoder = models.get_model('testing', num_classes=0, **SETTINGS)
  return encoder.apply({'params': params}, images, train=False)


def cosines(params, views):
  """Returns [B, V, K] for views [B, V, H, W, C], in float64."""
  flat = views.reshape(-1, *views.shape[2:])
  x = np.float64(encode(params['encoder'], flat))
  for i in range(3):
    layer = {k: np.float64(w) for k, w in params[f'projection_{i}'].items()}
    x = x @ layer['kernel'] + layer['bias']
    if i < 2:
      x = x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
  kernel = np.float64(params['prototypes']['kernel'])
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  found = x @ (kernel / np.linalg.norm(kernel, axis=0))
  return found.reshape(len(views), views.shape[1], K)


def test_loss_metrics_and_task_state_are_those_of_the_paper(run):
  start = run.at(5)
  batch = {name: np.asarray(x) for name, x in run.batch.items()}
  seen, small = batch['global_views'], batch['local_views']
  assert seen.shape[:2] == (BATCH, 2) and small.shape[:2] == (BATCH, 1)
  center, mean = (
    np.float64(start.task_state[name]) for name in ('center', 'distribution')
  )
  of_teacher = cosines(start.ema, seen)
  teacher = scipy.special.softmax((of_teacher - center) / 0.03, axis=-1)
  student = np.concatenate(
    [cosines(start.params, x) for x in (seen, small)], axis=1
  )
  logs = scipy.special.log_softmax(student / 0.1, axis=-1)
  pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
  loss = -np.mean([(teacher[:, i] * logs[:, j]).sum(-1) for i, j in pairs])
  entropy = scipy.special.entr(teacher).sum(-1).mean()
  state, metrics = run.update(start)
  found = {name: float(x) for name, x in metrics.items()}
  assert found['train_loss'] == pytest.approx(loss, rel=1e-4)
  assert found['train_teacher_entropy'] == pytest.approx(entropy, rel=1e-3)
  assert found['train_divergence'] == pytest.approx(loss - entropy, rel=1e-3)
  assert found['train_information'] == pytest.approx(
    scipy.special.rel_entr(teacher, mean).sum(-1).mean(), rel=1e-3
  )
  new = {'center': of_teacher, 'distribution': teacher}
  for name, old in start.task_state.items():
    expected = 0.9 * np.float64(old) + 0.1 * new[name].mean((0, 1))
    np.testing.assert_allclose(
      state.task_state[name], expected, rtol=1e-3, atol=1e-5
    )


def test_momentum_0_copies_the_student_and_1_leaves_the_teacher(run):
  # The momentum rises from 0 at step 0 to 1 at the last step.
  state, _ = run.update(run.at(-1))
  digits_run.assert_equal(state.ema, state.params)
  state, _ = run.update(run.at(STEPS - 1))
  digits_run.assert_equal(state.ema, run.start.ema)
  start = run.at(STEPS // 2 - 1)
  state, _ = run.update(start)
  jax.tree.map(
    lambda new, old, student: np.testing.assert_allclose(
      new, (old + student) / 2, atol=1e-6
    ),
    *(state.ema, start.ema, state.params),
  )


def test_prototypes_are_frozen_for_exactly_the_frozen_time(run):
  state, path = run.start, ('prototypes', 'kernel')
  for step in range(FROZEN + 2):
    before, (state, _) = state.params, run.update(state)
    assert np.any(
      state.params['projection_2']['kernel'] != before['projection_2']['kernel']
    )
    moved = np.any(state.params[path[0]][path[1]] != before[path[0]][path[1]])
    assert moved == (step >= FROZEN), step
  # From the start, the moments follow the gradient.
  once, _ = run.update(run.start)
  moments = [
    x
    for place, x in jax.tree.leaves_with_path(once.opt_state)
    if jax.tree_util.keystr(place).endswith("['prototypes']['kernel']")
  ]
  assert len(moments) == 2 and all(map(np.any, moments))


def test_the_teacher_has_no_gradient(run):
  start = run.start
  context = task.Context(
    key=jax.random.key(0),
    step=start.step,
    ema=start.ema,
    task_state=start.task_state,
    train=True,
  )

  @jax.jit
  @jax.grad
  def gradient(ema):
    context_ = context.replace(ema=ema)
    return run.parts.task.loss(start.params, run.batch, context_)[0].mean()

  assert not any(map(np.any, jax.tree.leaves(gradient(start.ema))))


def test_the_held_out_loss_is_of_the_student(monkeypatch):
  def evaluate(params, context):
    return params, context.ema

  monkeypatch.setattr(task, 'mean_metrics', lambda *args: {'test': evaluate})
  found = dino.evaluators(None, None, None)['test']
  context = task.Context(key=None, step=0, params='student', ema='teacher')
  for params in ('student', 'teacher'):
    assert found(params, context) == ('student', 'teacher')
