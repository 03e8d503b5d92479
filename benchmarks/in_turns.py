"""Compares the speed of vit_jax, plain Flax and timm, in turns.

  python benchmarks/in_turns.py --model=ti16 --batch=16 \
      vit_jax flax timm vit_jax:malloc timm:malloc

Each contestant is LIBRARY[:ALLOCATOR] and runs in a process of its own. In each
round, one after the other runs a few steps, while the others wait. So other
work on the machine changes all times alike. The table has medians of the rounds
and their ratio to the first contestant.

The allocator is `kept`, the choice of vit_jax's commands, which is the default;
`malloc`, the unchanged one; or the path of a shared library to preload. `flax`
is a plain ViT of Flax's own layers. `timm`, compiled by PyTorch, needs the
extra `interop`. MODEL may also be an architecture of timm, which vit_jax then
loads from timm's files (not `flax`).
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from vit_jax.parallel import allocator

# --- the parent: takes turns -------------------------------------------------


def parse_arguments(arguments):
  """Returns the parsed command line."""
  parser = argparse.ArgumentParser(
    description=__doc__.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('contestants', nargs='+', help='LIBRARY[:ALLOCATOR]')
  parser.add_argument('--model', default='ti16')
  parser.add_argument('--mode', default='training', choices=list(MODES))
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--accum_steps', type=int, default=1, help='vit_jax only')
  parser.add_argument('--steps', type=int, default=2, help='steps in a turn')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


class Worker:
  """A process that runs steps when it is asked."""

  def __init__(self, contestant):
    kind = contestant.partition(':')[2]
    environment = dict(os.environ, JAX_PLATFORMS='cpu')
    if os.path.exists(kind):
      environment['LD_PRELOAD'] = os.path.abspath(kind)
    elif kind in ('', 'kept'):
      environment |= allocator.find(environment)
    elif kind != 'malloc':
      sys.exit(
        f'{contestant}: there is no allocator {kind}. Use kept, malloc or the '
        'path of a shared library'
      )
    self.name = contestant
    self._process = subprocess.Popen(
      [sys.executable, *sys.argv, f'--worker={contestant}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      text=True,
    )

  def run(self, steps):
    """Returns {name: number}, for example seconds, of a turn."""
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      sys.exit(f'{self.name} ended with an error')
    return json.loads(line)

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def compare(arguments):
  """Runs all contestants in turns and prints the table."""
  workers = [Worker(name) for name in arguments.contestants]
  for worker in workers:
    first = worker.run(3)
    print(
      f'{worker.name}: ready after {first["since_start"]:.0f} s', flush=True
    )
  turns = {worker.name: [] for worker in workers}
  for _ in range(arguments.rounds):
    for worker in random.sample(workers, len(workers)):
      turns[worker.name].append(worker.run(arguments.steps))
  columns = 'ms', 'images/s', 'CPU ms', 'kernel ms', 'peak MB', 'time'
  print(f'| {arguments.model} {arguments.mode} | ' + ' | '.join(columns) + ' |')
  print('| --- |' + ' ---: |' * len(columns))
  base = None
  for worker in workers:
    seconds, cpu, kernel, peak = (
      statistics.median(turn[key] for turn in turns[worker.name])
      for key in ('seconds', 'cpu', 'kernel', 'peak')
    )
    base = base or seconds
    rate = arguments.batch / seconds
    print(
      f'| {worker.name} | {1e3 * seconds:.0f} | {rate:.1f} | {1e3 * cpu:.0f} '
      f'| {1e3 * kernel:.0f} | {peak / 2**10:.0f} | {seconds / base:.2f} |'
    )
    worker.close()


# --- the workers -------------------------------------------------------------


def vit_jax_step(arguments):
  """Returns a function that runs a step of vit_jax."""
  import jax
  import optax

  from vit_jax import models
  from vit_jax import train_state
  from vit_jax import train_step
  from vit_jax.parallel import numerics
  from vit_jax.parallel import sharding
  from vit_jax.tasks import classification

  try:
    model = models.get_model(
      arguments.model, num_classes=1000, dtype=arguments.dtype
    )
  except ValueError:
    model = _of_timm(arguments)
  mesh = sharding.make_mesh()
  data = sharding.put_batch(_batch(arguments), mesh)
  task, tx = classification.of_model(model), optax.sgd(1e-3, momentum=0.9)
  state = train_state.make_init_fn(task, tx, data, mesh)(jax.random.key(0))
  if arguments.mode == 'inference':
    forward = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))
    return lambda: forward(state.params, data['image']).block_until_ready()
  update = train_step.make_update_fn(
    task,
    tx,
    lambda _: 1e-3,
    mesh,
    keys=numerics.run_keys(1),
    accum_steps=arguments.accum_steps,
  )

  def step():
    nonlocal state
    state, metrics = update(state, data, None)
    jax.block_until_ready(metrics)

  return step


def flax_step(arguments):
  """Returns a function that runs a step of a plain ViT."""
  from flax import linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  from vit_jax.models import variants

  sizes = variants.VARIANTS[variants.resolve(arguments.model)]

  class Vit(nn.Module):
    @nn.compact
    def __call__(self, x):  # [B, H, W, 3] -> [B, 1000]
      width, patch = sizes['hidden_size'], (sizes['patch_size'],) * 2
      x = nn.Conv(width, patch, patch, 'VALID', dtype=arguments.dtype)(x)
      x = x.reshape(len(x), -1, width)
      cls = self.param('cls', nn.initializers.zeros, (1, 1, width))
      x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
      x = x.astype(arguments.dtype)
      x += self.param('pos', nn.initializers.normal(0.02), (1, *x.shape[1:]))
      for _ in range(sizes['num_layers']):
        y = nn.LayerNorm(dtype=arguments.dtype)(x)
        x += nn.MultiHeadDotProductAttention(
          sizes['num_heads'], dtype=arguments.dtype
        )(y, y)
        y = nn.LayerNorm(dtype=arguments.dtype)(x)
        y = nn.gelu(nn.Dense(sizes['mlp_dim'], dtype=arguments.dtype)(y))
        x += nn.Dense(width, dtype=arguments.dtype)(y)
      x = nn.LayerNorm(dtype=arguments.dtype)(x)
      return nn.Dense(1000, dtype=jnp.float32)(x[:, 0])

  batch = jax.device_put(_batch(arguments))
  model, tx = Vit(), optax.sgd(1e-3, momentum=0.9)
  params = jax.jit(model.init)(jax.random.key(0), batch['image'])
  opt_state = tx.init(params)
  if arguments.mode == 'inference':
    forward = jax.jit(model.apply)
    return lambda: forward(params, batch['image']).block_until_ready()

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
    jax.block_until_ready(params)

  return step


def timm_step(arguments):
  """Returns a function that runs a step of timm's model, compiled."""
  import torch

  model = torch.compile(_timm_model(arguments))
  batch = {k: torch.from_numpy(x) for k, x in _batch(arguments).items()}
  images, labels = batch['image'].permute(0, 3, 1, 2), batch['label'].long()
  images = images.contiguous()
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
  autocast = torch.autocast(
    'cpu', torch.bfloat16, enabled=arguments.dtype == 'bfloat16'
  )

  def step():
    with autocast, torch.inference_mode(arguments.mode == 'inference'):
      logits = model(images)
    if arguments.mode == 'training':
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(logits.float(), labels).backward()
      optimizer.step()

  return step


MODES = {'training': True, 'inference': False}
STEPS = {'vit_jax': vit_jax_step, 'flax': flax_step, 'timm': timm_step}


def _batch(arguments):
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (arguments.batch, arguments.image_size, arguments.image_size, 3)
  return {
    'image': rng.uniform(-1, 1, shape).astype(np.float32),
    'label': rng.integers(1000, size=arguments.batch).astype(np.int32),
  }


def _timm_model(arguments):
  """Returns timm's model of a name of vit_jax or of timm."""
  import timm

  from vit_jax.models import variants

  name, settings = arguments.model, {}
  sizes = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge'}
  if name not in timm.list_models():
    size, patch = variants.resolve(name).removeprefix('ViT-').split('_')
    name, settings = f'vit_{sizes[size]}_patch{patch}_224', {}
    settings = {'img_size': arguments.image_size}
  model = timm.create_model(name, num_classes=1000, **settings)
  return model.train(MODES[arguments.mode])


def _of_timm(arguments):
  """Returns our model of an architecture of timm."""
  from timm.models import _hub

  from vit_jax.checkpoint import trained_model

  with tempfile.TemporaryDirectory() as folder:
    _hub.save_for_hf(_timm_model(arguments), folder, safe_serialization=True)
    model = trained_model.load_model(folder).model
  return model.clone(dtype=arguments.dtype)


def work(arguments):
  """Runs as many steps as each line of the standard input says."""
  start = time.monotonic()
  output, sys.stdout = sys.stdout, sys.stderr
  step = STEPS[arguments.worker.partition(':')[0]](arguments)
  for line in sys.stdin:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for _ in range(int(line)):
      step()
    seconds, now = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    kernel = now.ru_stime - before.ru_stime
    cpu = now.ru_utime - before.ru_utime + kernel
    taken = {'seconds': seconds - began, 'cpu': cpu, 'kernel': kernel}
    found = {name: x / int(line) for name, x in taken.items()}
    found |= {'peak': now.ru_maxrss, 'since_start': seconds - start}
    print(json.dumps(found), file=output, flush=True)


if __name__ == '__main__':
  given = parse_arguments(sys.argv[1:])
  work(given) if given.worker else compare(given)
