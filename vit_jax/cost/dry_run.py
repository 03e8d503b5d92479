"""What a run would be, without running it: sizes, work, layout, memory."""

import collections
import itertools
import math
import os
import re

import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint.pretrained import search
from vit_jax.cost import flops
from vit_jax.cost import memory
from vit_jax.data import input_pipeline
from vit_jax.evaluators import accuracy
from vit_jax.models import variants
from vit_jax.optim import loss_functions
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import setup


@numerics.fixed()
def show(config):
  """Builds and compiles what `config` says, and says what it found.

  Raises:
    ValueError: a setting, weights or the data are not fit for the run.
  """
  planned = setup.make_plan(config)
  setup.use_compilation_cache(config.compilation_cache_dir)
  mesh = planned.mesh
  weights_path, places = processes.main_first(
    lambda: search.look(
      config.pretrained,
      config.pretrained_dir,
      model_name=variants.resolve(config.model.name),
      sources=config.weights_sources,
    )
  )
  loaded = (
    init_weights.read(
      weights_path,
      setup.model_settings(config),
      config.pretrained_head == 'keep',
    )
    if weights_path
    else None
  )
  data = setup.load_data(
    input_pipeline.streaming(config), mesh, check_images=False
  )
  parts = setup.make_parts(config, planned, data)
  state, num_classes = parts.abstract_state, len(data.class_names)

  console.log_info(setup.describe_model(config, state.params, mesh))
  forward, both = flops.count(
    parts.model, state.params, planned.image_size, num_classes
  )
  console.log_info(
    f'{forward / 1e9:.3g} GFLOP an image forward, {both / 1e9:.3g} in '
    'training (a multiplication and an addition are two)'
  )
  console.log_info(
    f'{config.dataset}: {data.num_train} training and '
    f'{data.num_test} test images in {num_classes} classes'
    + (
      ', counted by name: a run tries to decode each of them'
      if os.path.isdir(os.path.expanduser(config.dataset))
      else ''
    )
  )
  console.log_info(
    f'{config.total_steps} steps of {config.batch} images: '
    f'{config.total_steps * config.batch / data.num_train:.1f} epochs'
  )
  _say_weights(config, planned, data, parts, loaded, places)
  del loaded  # hundreds of megabytes
  console.log_info(
    'parameters'
    + (f', over {sharding.describe_mesh(mesh)}:' if mesh.size > 1 else ':')
  )
  for line in layout(state.params, mesh):
    console.log_info(f'  {line}')
  console.log_info(
    'parameters and optimizer state on each device: '
    + memory.readable(memory.per_device(state))
  )

  def batch(size, masked=False):
    return memory.abstract_batch(
      size, planned.image_size, num_classes, mesh, masked
    )

  accum_steps = memory.find_accum_steps(config, planned, data, parts)
  found = memory.needed(
    parts.make_update(accum_steps), state, batch(config.batch)
  )
  rows = config.batch // sharding.num_row_parts(mesh) // accum_steps
  console.log_info(
    f'memory of a device in training, {rows} image(s) at a time in each of '
    f'{accum_steps} micro-batch(es): {_account(found)}'
  )
  eval_fn = accuracy.make_eval_fn(
    parts.model, mesh, loss_functions.softmax_cross_entropy
  )
  found = memory.needed(
    eval_fn, state.params, batch(config.batch_eval, masked=True)
  )
  console.log_info(
    'memory of a device in evaluation, '
    f'{config.batch_eval // sharding.num_row_parts(mesh)} image(s) at a '
    f'time: {_account(found)}'
  )
  console.log_info(f'a device has {memory.readable(memory.available())}')


def _say_weights(config, planned, data, parts, loaded, places):
  """Says what training would begin with, and that it fits where it is here."""
  if loaded:
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params
    )
    init_weights.fit(
      loaded,
      parts.model,
      zeros,
      planned.image_size,
      data.class_names,
      config.dataset,
      resize_patches=config.model.patch_size is not None,
    )
    console.log_info(f'weights: {loaded.source}, which fit')
  elif places:
    console.log_info(
      'weights: not here yet, and not checked; a run fetches them '
      'from the first of these that has them:'
    )
    for place in places:
      console.log_info(f'  {place}')
  else:
    console.log_info('weights: random')


def _account(found):
  return (
    f'{memory.readable(found.total)} = '
    f'{memory.readable(found.arguments)} state and batch + '
    f'{memory.readable(found.outputs + found.work)} work'
  )


def layout(params, mesh):
  """A line for each group of parameters that are split alike, and the rest."""

  def group_of(leaf):
    path, x = leaf
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    name = re.sub(
      r'((?:encoderblock|MixerBlock|layers)_|block|unit)\d+(?=/)', r'\1*', path
    )
    return name, x.shape, tuple(sharding.partition_spec(path, x.shape, mesh))

  groups = collections.Counter(
    map(group_of, jax.tree_util.tree_leaves_with_path(params))
  )
  lines, whole = [], []
  for (name, shape, spec), count in sorted(groups.items(), key=str):
    if any(spec) or math.prod(shape) >= sharding.SMALLEST_SPLIT:
      axes = ' × '.join(
        f'{n} over {axis}' if axis else str(n)
        for n, axis in itertools.zip_longest(shape, spec)
      )
      lines.append(
        f'{f"{count} of " if count > 1 else ""}{name} [{axes}]'
        + ('' if any(spec) else ', whole')
      )
    else:
      whole += [math.prod(shape)] * count
  return [*lines, f'{len(whole)} smaller arrays, whole: {sum(whole)} values']
