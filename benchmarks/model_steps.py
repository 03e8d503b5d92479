"""Training steps and forward passes of ViTs, on random images.

The benchmarks use this module. `MAKERS[library](case)` returns a function
`run(steps)`, which runs this number of steps and waits for the last one. The
libraries are vit_jax, flax (a plain ViT of Flax's own layers) and timm
(compiled by PyTorch). All train with SGD, with a momentum in float32.
"""

from collections.abc import Mapping
import dataclasses
import tempfile
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import models
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.models import variants
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.tasks import classification

MODES = ('training', 'inference')
_TIMM = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge'}


@dataclasses.dataclass(frozen=True)
class Case:
  """What is computed in a step."""

  model: str  # a name of vit_jax, or an architecture of timm
  mode: str  # one of `MODES`
  batch: int
  image_size: int = 224
  dtype: str = 'float32'  # of the activations
  # Settings of the model, and micro-batches: both only of vit_jax.
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  accum_steps: int = 1

  def check_settings(self, library):
    """Raises ValueError if there are settings, which only vit_jax has."""
    if self.settings:
      raise ValueError(
        f'settings={dict(self.settings)} are settings of models of vit_jax, '
        f'not of {library}. Time {library} in a run without settings.'
      )

  def random_batch(self):
    """Returns images in [-1, 1] and labels."""
    rng = np.random.default_rng(0)
    shape = (self.batch, self.image_size, self.image_size, 3)
    return {
      'image': rng.uniform(-1, 1, shape).astype(np.float32),
      'label': rng.integers(1000, size=self.batch).astype(np.int32),
    }


def _optimizer():
  return optax.sgd(1e-3, momentum=0.9)


# --- JAX ---------------------------------------------------------------------


def _running(step):
  """Returns `run(steps)` of a function step() -> arrays."""

  def run(steps):
    for _ in range(steps):
      arrays = step()
    jax.block_until_ready(arrays)

  return run


def vit_jax(case):
  """Returns `run(steps)` of vit_jax."""
  if _is_of_timm(case.model):
    model = _convert(case)
  else:
    settings = {'dtype': case.dtype, **case.settings}
    if 'dropout_rate' in variants.VARIANTS[variants.resolve(case.model)]:
      settings.setdefault('dropout_rate', 0.0)  # as the other libraries
    model = models.get_model(case.model, num_classes=1000, **settings)
  mesh = sharding.make_mesh()
  batch = sharding.put_batch(case.random_batch(), mesh)
  task, tx = classification.of_model(model), _optimizer()
  state = train_state.make_init_fn(task, tx, batch, mesh)(jax.random.key(0))
  if case.mode == 'inference':
    forward = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))
    return _running(lambda: forward(state.params, batch['image']))
  update = train_step.make_update_fn(
    task,
    tx,
    lambda _: 1e-3,
    mesh,
    keys=numerics.run_keys(1),
    accum_steps=case.accum_steps,
  )

  def step():
    nonlocal state
    state, metrics = update(state, batch, None)
    return metrics

  return _running(step)


class PlainVit(nn.Module):
  """A ViT of Flax's own layers."""

  sizes: Mapping[str, int]  # a row of `variants.VARIANTS`
  dtype: str

  @nn.compact
  def __call__(self, x):  # [B, H, W, 3] -> [B, 1000]
    width, patch = self.sizes['hidden_size'], (self.sizes['patch_size'],) * 2
    x = nn.Conv(width, patch, patch, 'VALID', dtype=self.dtype)(x)
    x = x.reshape(len(x), -1, width)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, width))
    x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
    pos = self.param('pos', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    x = (x + pos).astype(self.dtype)
    for _ in range(self.sizes['num_layers']):
      y = nn.LayerNorm(dtype=self.dtype)(x)
      x += nn.MultiHeadDotProductAttention(
        self.sizes['num_heads'], dtype=self.dtype
      )(y, y)
      y = nn.LayerNorm(dtype=self.dtype)(x)
      y = nn.gelu(nn.Dense(self.sizes['mlp_dim'], dtype=self.dtype)(y))
      x += nn.Dense(width, dtype=self.dtype)(y)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    return nn.Dense(1000, dtype=jnp.float32)(x[:, 0])


def flax(case):
  """Returns `run(steps)` of a plain ViT."""
  case.check_settings('flax')
  sizes = variants.VARIANTS[variants.resolve(case.model)]
  model, tx = PlainVit(sizes, case.dtype), _optimizer()
  batch = jax.device_put(case.random_batch())
  params = jax.jit(model.init)(jax.random.key(0), batch['image'])
  opt_state = tx.init(params)
  if case.mode == 'inference':
    forward = jax.jit(model.apply)
    return _running(lambda: forward(params, batch['image']))

  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(
      model.apply(params, batch['image']), batch['label']
    ).mean()

  def update(params, opt_state):
    grads = jax.grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  update = jax.jit(update, donate_argnums=(0, 1))

  def step():
    nonlocal params, opt_state
    params, opt_state = update(params, opt_state)
    return params

  return _running(step)


# --- timm --------------------------------------------------------------------


def timm(case):
  """Returns `run(steps)` of timm's model, on a GPU if PyTorch has one."""
  import torch

  case.check_settings('timm')
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  net = _timm_model(case).to(device)
  # Without `dynamic`, another batch size gets a program of its own.
  model = torch.compile(net, dynamic=False)
  batch = {
    name: torch.from_numpy(x).to(device)
    for name, x in case.random_batch().items()
  }
  images = batch['image'].permute(0, 3, 1, 2).contiguous()
  labels = batch['label'].long()
  optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
  autocast = torch.autocast(
    device, torch.bfloat16, enabled=case.dtype == 'bfloat16'
  )

  def step():
    with autocast, torch.inference_mode(case.mode == 'inference'):
      logits = model(images)
    if case.mode == 'training':
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(logits.float(), labels).backward()
      optimizer.step()

  def run(steps):
    for _ in range(steps):
      step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return run


def _is_of_timm(name):
  try:
    variants.resolve(name)
  except ValueError:
    return True
  return False


def _timm_model(case):
  """Returns timm's model of a name of vit_jax or of timm."""
  import timm

  name, settings = case.model, {}
  if not _is_of_timm(name):
    size, patch = variants.resolve(name).removeprefix('ViT-').split('_')
    name = f'vit_{_TIMM[size]}_patch{patch}_224'
    settings = {'img_size': case.image_size}
  model = timm.create_model(name, num_classes=1000, **settings)
  return model.train(case.mode == 'training')


def _convert(case):
  """Returns our model of an architecture of timm."""
  from timm.models import _hub

  from vit_jax.checkpoint import trained_model

  with tempfile.TemporaryDirectory() as folder:
    _hub.save_for_hf(_timm_model(case), folder, safe_serialization=True)
    model = trained_model.load_model(folder).model
  return model.clone(dtype=case.dtype, **case.settings)


MAKERS = {'vit_jax': vit_jax, 'flax': flax, 'timm': timm}
