"""Describes a run without running it: sizes, FLOPs, sharding, memory."""

import collections
import itertools
import math
import os
import re
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_jax import console
from vit_jax.cost import flops
from vit_jax.cost import memory
from vit_jax.evaluators import means
from vit_jax.optim import rules
from vit_jax.parallel import compilation_cache
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.run import messages
from vit_jax.run import setup
from vit_jax.run.start import adopted_settings
from vit_jax.run.start import bit_hyperrule
from vit_jax.run.start import feature_data
from vit_jax.run.start import initial_weights


@numerics.fixed()
def show(config: ConfigDict) -> None:
  """Builds and compiles the run of `config`, and logs its properties.

  Raises:
    ValueError: a setting, the weights or the data cannot be used.
  """
  config = adopted_settings.adopt(bit_hyperrule.adopt(config), fetches=False)
  mesh = setup.check(config)
  compilation_cache.use(config.compilation_cache_dir)
  loaded, places = initial_weights.find(config, fetches=False)
  # Balanced weights need the labels of all examples, which streams lack.
  streams = config.class_weights != 'balanced'
  data = setup.load_data(config, mesh, check_images=False, streams=streams)
  data = feature_data.encode_data(
    config, mesh, data, setup.NOTHING_GIVEN, None, loaded
  )
  parts = setup.make_parts(config, mesh, data)
  frozen, _ = initial_weights.load_frozen(parts)
  _log_model(config, parts, frozen)
  _log_weights(config, parts, loaded, places)
  del loaded  # hundreds of megabytes
  _log_layout(parts)
  _log_memory(config, parts, frozen)


def _log_model(config, parts, frozen):
  """Logs the model, its FLOPs, the data and the number of steps."""
  data, state = parts.data, parts.abstract_state
  console.log_info(
    messages.describe_model(
      config, state.params, parts.mesh, parts.frozen_paths
    )
  )
  for line in messages.describe_optimizer(config, parts):
    console.log_info(line)
  plain = setup.make_parts(
    setup.without_loops(config, parts.task.model), parts.mesh, data
  ).task
  forward, both = flops.count(
    plain,
    state.params,
    parts.abstract_batch(parts.batch),
    setup.eval_context(state.replace(step=0), frozen),
    parts.frozen_paths,
    parts.value_and_grad,
  )
  console.log_info(
    f'{forward / 1e9:.3g} GFLOP per image in the forward pass, '
    f'{both / 1e9:.3g} in training (a multiply-add counts as two)'
  )
  console.log_info(
    messages.describe_data(config, data)
    + (
      ', counted by file name: only a run checks that they can be decoded'
      if os.path.isdir(os.path.expanduser(config.dataset))
      else ''
    )
  )
  console.log_info(
    f'{parts.total_steps} steps of {parts.batch} images: '
    f'{parts.total_steps * parts.batch / data.num_train:.1f} epochs'
  )


def _log_layout(parts):
  """Logs how the parameters are sharded over the mesh."""
  mesh, state = parts.mesh, parts.abstract_state
  console.log_info(
    'parameters'
    + (f', over {sharding.describe_mesh(mesh)}:' if mesh.size > 1 else ':')
  )
  for line in layout(state.params, mesh):
    console.log_info(f'  {line}')
  average = '' if state.ema is None else ', their moving average'
  console.log_info(
    f'parameters{average} and optimizer state on each device: '
    + memory.readable(memory.per_device(state))
  )
  if parts.frozen_paths:
    trained = rules.select(state.params, parts.frozen_paths)
    size = memory.per_device(state.params) - memory.per_device(trained)
    console.log_info(
      f'of these, {memory.readable(size)} are frozen parameters, which have no '
      'optimizer state'
    )


def _log_memory(config, parts, frozen):
  """Logs the device memory that training and evaluation need."""
  accum_steps = memory.find_accum_steps(config, parts, frozen)
  state, row_parts = parts.abstract_state, sharding.num_row_parts(parts.mesh)
  found = memory.needed(
    parts.make_update(accum_steps), state, parts.abstract_feed(), frozen
  )
  console.log_info(
    f'memory per device in training, '
    f'{parts.batch // row_parts // accum_steps} image(s) at a time in each of '
    f'{accum_steps} micro-batch(es): {_account(found)}'
  )
  found = memory.needed(
    means.make_eval_fn(parts.task, parts.mesh),
    state.params,
    parts.abstract_batch(config.batch_eval, masked=True),
    setup.eval_context(state, frozen),
  )
  console.log_info(
    'memory per device in evaluation, '
    f'{config.batch_eval // row_parts} image(s) at a '
    f'time: {_account(found)}'
  )
  console.log_info(f'memory of a device: {memory.readable(memory.available())}')


def _log_weights(config, parts, loaded, places):
  """Logs the initial weights; checks them if they are on this machine."""
  if loaded:
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params
    )
    initial_weights.fit(loaded, config, parts, zeros)
    console.log_info(f'weights: {loaded.source}, which match the model')
  elif places:
    console.log_info(
      'weights: not downloaded and not checked; a run downloads them from '
      'the first of these places that has them:'
    )
    for place in places:
      console.log_info(f'  {place}')
  else:
    console.log_info('weights: random')
    initial_weights.warn_of_frozen(parts, parts.frozen_paths)


def _account(found):
  return (
    f'{memory.readable(found.total)} = '
    f'{memory.readable(found.arguments)} state and batch + '
    f'{memory.readable(found.outputs + found.work)} work'
  )


def layout(params: Any, mesh: jax.sharding.Mesh) -> list[str]:
  """Returns a line per group of similar arrays, and one for small arrays."""

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
  lines, small = [], []
  for (name, shape, spec), count in sorted(groups.items(), key=str):
    if any(spec) or math.prod(shape) >= sharding.SMALLEST_SPLIT:
      axes = ' × '.join(
        f'{n} over {axis}' if axis else str(n)
        for n, axis in itertools.zip_longest(shape, spec)
      )
      lines.append(
        f'{f"{count} of " if count > 1 else ""}{name} [{axes}]'
        + ('' if any(spec) else ', replicated')
      )
    else:
      small += [math.prod(shape)] * count
  return [
    *lines,
    f'{len(small)} smaller arrays, replicated: {sum(small)} values',
  ]
