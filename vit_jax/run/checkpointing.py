"""The checkpoints of a run: saved and restored with Orbax."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import glob
import itertools
import json
import math
import os
import shutil
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp

from vit_jax import console
from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import orbax_paths

_ITEM = 'state'  # folder of the arrays in that of a step


class _SealedHandler(ocp.StandardCheckpointHandler):
  """Writes arrays, then their checksums, before the folder gets its name."""

  def finalize(self, directory):
    super().finalize(orbax_paths.literal(directory))
    checksums.write_checksums(directory)


class _Manager(ocp.CheckpointManager):
  """Leaves JAX's preemption notice to `preemption`, with its own numbers.

  Orbax would ask at the step it saves or has saved, from a thread too, and JAX
  takes the last number asked for where the process is: the processes would
  agree on a question that one of them has passed.
  """

  def reached_preemption(self, step):
    return False


def _stored(state):
  """What is stored of a `TrainState`: its fields, but for those it lacks."""
  if not dataclasses.is_dataclass(state):
    return state
  return {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
    if getattr(state, field.name) is not None
  }


def direction_of(metric: str) -> str:
  """Which values of a metric are better: 'min' of losses, 'max' of the rest."""
  return 'min' if metric.startswith('loss') else 'max'


class Checkpoints:
  """States of a run, each in a folder named after its step.

  The newest are kept, and the best by a metric. A folder gets its name when it
  is whole, so that one whose writing was cut short is never used.
  """

  def __init__(self, folder, keep, best_metric='', best_direction='', rows=()):
    """Opens the folder, which need not exist.

    Args:
      folder: of all checkpoints.
      keep: how many of the newest stay.
      best_metric: the name of a number of the evaluation, by which the best
        stays as well; '' keeps none.
      best_direction: 'max' or 'min'; '' is that of `direction_of`.
      rows: numbers of earlier evaluations, dicts with a `step`.
    """
    orbax_paths.check(folder)
    self._folder = os.path.abspath(folder)
    self._keep = keep
    self._metric = best_metric
    self._direction = best_direction or direction_of(best_metric)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
      handlers.add(_ITEM, args, _SealedHandler())
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self, enable_async_checkpointing=True
    )
    _make_writable(self._folder)
    _check_notes(self._folder)
    self._manager = _Manager(
      self._folder, handler_registry=handlers, options=options
    )
    self._is_saving = False
    self._ranks = {}  # of evaluated steps that have a checkpoint
    for row in rows:
      if row['step'] in self._manager.all_steps():
        self._note(row['step'], row)

  def _rank(self, numbers):
    """How good an evaluation is (more is better); None where nothing tells."""
    value = numbers.get(self._metric, math.nan)
    if not math.isfinite(value):
      return None
    return -value if self._direction == 'min' else value

  def _note(self, step, numbers):
    """Remembers how good a checkpoint is, where that is known."""
    rank = self._rank(numbers)
    if rank is not None:
      self._ranks[step] = rank

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """Which checkpoints stay, as Orbax asks when another one is written."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self._keep :], self.best_step()}
    return [step in kept for step in steps]

  def latest_step(self) -> int | None:
    """Completed updates of the newest checkpoint, None where there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Completed updates of the best checkpoint, None where there is none."""
    steps = [step for step in self._ranks if step in self._manager.all_steps()]
    # The newest of equals.
    return max(steps, key=lambda step: (self._ranks[step], step), default=None)

  def is_best(self, numbers: Mapping[str, float]) -> bool:
    """Whether an evaluation, {} being none, surpasses those of checkpoints.

    Raises:
      ValueError: it has not the number by which to choose.
    """
    if not self._metric or not numbers:
      return False
    if self._metric not in numbers:
      raise ValueError(
        f'config.best_metric={self._metric!r} is not one of '
        + ', '.join(numbers)
      )
    rank, best = self._rank(numbers), self.best_step()
    return rank is not None and (best is None or rank > self._ranks[best])

  def set_damaged_aside(self) -> int | None:
    """Moves damaged checkpoints away: the newest and the best, until sound.

    Of several processes one does, and the others then `reload`.

    Returns:
      Completed updates of the newest sound one, None where there is no
      checkpoint.

    Raises:
      ValueError: there are checkpoints, and each of them is damaged.
    """
    sound, damaged = {None}, []
    while not sound.issuperset(steps := (self.latest_step(), self.best_step())):
      step = next(step for step in steps if step not in sound)
      folder = os.path.join(self._folder, str(step))
      damage = checksums.verify(os.path.join(folder, _ITEM))
      if not damage:
        sound.add(step)
        continue
      aside = _unused(f'{self._folder}_damaged/{step}')
      os.makedirs(os.path.dirname(aside), exist_ok=True)
      os.rename(folder, aside)
      self.reload()
      damaged.append(
        f'the checkpoint of step {step} is damaged and now in {aside}: {damage}'
      )
    newest = self.latest_step()
    if damaged and newest is None:
      raise ValueError(
        'no checkpoint is sound: '
        + '; '.join(damaged)
        + '. The same command begins anew'
      )
    for text in damaged:
      console.log_info(f'warning: {text}. Going on from step {newest}')
    return newest

  def reload(self) -> None:
    """Sees what was moved away, also by another process."""
    self._manager.reload()

  def check_room(self, state: Any) -> None:
    """Raises an OSError if the disk has no room for a checkpoint of `state`."""
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._folder).free
    if free < size:
      raise OSError(
        f'a checkpoint takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB '
        f'are free in {self._folder}: free some, or choose another --workdir'
      )

  def save(
    self, step: int, state: Any, numbers: Mapping[str, float] | None = None
  ) -> None:
    """Starts writing; returns once the arrays are copied off the devices.

    Args:
      step: completed updates.
      state: of the run.
      numbers: of the evaluation of this state, if there was one.

    Raises:
      OSError: this or the last checkpoint cannot be written.
    """
    self._note(step, numbers or {})
    if step == self.latest_step():
      return  # the best so far, saved at its evaluation; or only evaluated now
    with self._explained():
      # Orbax's threads would wait five minutes for a folder they cannot make.
      tempfile.TemporaryFile(dir=self._folder).close()
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(_stored(state))),
        force=True,
      )
    self._is_saving = True

  def check(self) -> None:
    """Raises the OSError of a save that has failed; does not wait for one."""
    if self._is_saving and not self._manager.is_saving_in_progress():
      self._is_saving = False
      with self._explained():
        self._manager.wait_until_finished()

  def restore(self, step: int, init_fn: Callable) -> Any:
    """The checkpoint of a step, laid out as the states of `init_fn` are.

    Raises:
      ValueError: it does not fit.
    """
    abstract = jax.eval_shape(init_fn, jax.random.key(0))
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(_stored(abstract))
        ),
      )[_ITEM]
    except Exception as error:  # Orbax raises what its storage layers raise
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
      raise ValueError(
        f'the checkpoint {self._folder}/{step} cannot be restored '
        f'({reason}). Was it written by another version? Remove that folder '
        'to go on from an earlier one, or train in another --workdir'
      ) from error
    return abstract.replace(**found)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except OSError as error:
      if kind is None:
        raise
      console.log(f'warning: {error}')  # the exception of the run matters more

  def close(self) -> None:
    """Waits until everything is written."""
    with self._explained():
      self._manager.wait_until_finished()
    self._manager.close()

  @contextlib.contextmanager
  def _explained(self):
    """Turns what the storage layers raise into an OSError that says what."""
    try:
      yield
    except Exception as error:
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
      if 'RESOURCE_EXHAUSTED' in reason or 'No space left' in reason:
        reason = 'the disk is full'
      raise OSError(
        f'a checkpoint cannot be written to {self._folder} ({reason}). '
        'Earlier ones are intact; once that is fixed, the same command goes '
        'on'
      ) from error


def _make_writable(folder):
  """Makes a folder; an OSError if it cannot be made, or not written into."""
  try:
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except FileExistsError as error:
    raise OSError(
      f'{folder} is not a folder: checkpoints cannot be written. '
      'Remove it, or choose another --workdir'
    ) from error
  except OSError as error:
    raise OSError(
      f'checkpoints cannot be written to {folder}: '
      f'{error.strerror}. Change its permissions, or choose '
      'another --workdir'
    ) from error


def _check_notes(folder):
  """Raises a ValueError for a note of Orbax's that would make it fail.

  It goes on without one, or with a part of one, but not with other JSON.
  """
  for path in glob.glob(
    os.path.join(glob.escape(folder), '*', '_CHECKPOINT_METADATA')
  ):
    try:
      with open(path, encoding='utf-8') as file:
        damaged = not isinstance(json.load(file), dict)
    except (OSError, ValueError):
      continue
    if damaged:
      raise ValueError(f'{path} is damaged: remove it; nothing in it is needed')


def _unused(path):
  """`path`, or with a number behind it if that exists."""
  names = itertools.chain([path], (f'{path}.{i}' for i in itertools.count(2)))
  return next(name for name in names if not os.path.exists(name))
