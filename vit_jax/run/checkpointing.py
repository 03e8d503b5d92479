"""Saves and restores the checkpoints of a run with Orbax."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import errno
import glob
import itertools
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
from vit_jax.files import json_files
from vit_jax.run import checkpoint_arrays

_ITEM = 'state'  # folder of the arrays, in the folder of a step


class _SealedHandler(ocp.StandardCheckpointHandler):
  """Writes arrays and then checksums, before the folder gets its final name."""

  def finalize(self, directory):
    super().finalize(orbax_paths.literal(directory))
    checksums.write_checksums(directory)


class _Manager(ocp.CheckpointManager):
  """A manager that does not ask JAX whether a preemption notice has arrived.

  Only the module `preemption` asks JAX, with the numbers 0, 1, 2, …. Orbax
  would ask with the number of the step that it saves, also from another thread.
  JAX treats the last number as the progress of the process. The processes could
  then agree to stop at a number that one of them has already passed.
  """

  def reached_preemption(self, step):
    return False


def _stored(state):
  """Returns the fields of a `TrainState` to store: those that are not None."""
  if not dataclasses.is_dataclass(state):
    return state
  return {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
    if getattr(state, field.name) is not None
  }


class Checkpoints:
  """The checkpoints of a run. Each has a folder named after its step.

  The newest checkpoints and the best one by a metric are kept. A folder gets
  its name when it is complete, so a partly written checkpoint is never used.
  """

  def __init__(
    self, folder, keep, best_metric='', best_direction='max', rows=()
  ):
    """Opens the folder, or creates it.

    Args:
      folder: folder of all checkpoints.
      keep: number of the newest checkpoints to keep.
      best_metric: name of the evaluation metric that selects the best
        checkpoint, which is also kept. '' selects none.
      best_direction: 'max' or 'min', the better values of the metric. The
        attribute with this name may be changed later.
      rows: metrics of earlier evaluations, dicts with a `step`.
    """
    orbax_paths.check(folder)
    self._folder = os.path.abspath(folder)
    self._keep = keep
    self._metric = best_metric
    self.best_direction = best_direction
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
    self._values = {}  # {step: `best_metric`} of evaluated checkpoints
    for row in rows:
      if row['step'] in self._manager.all_steps():
        self._note(row['step'], row)

  def _note(self, step, numbers):
    """Stores the metric of a checkpoint, if it was evaluated."""
    value = numbers.get(self._metric, math.nan)
    if math.isfinite(value):
      self._values[step] = value

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """Returns which checkpoints to keep. Orbax calls it when it saves one."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self._keep :], self.best_step()}
    return [step in kept for step in steps]

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the best checkpoint, or None."""
    return self._best(self.best_direction)

  def _best(self, direction):
    """Returns the step of the best checkpoint; of equal ones, the newest."""
    sign = -1 if direction == 'min' else 1
    ranks = {
      step: (sign * value, step)
      for step, value in self._values.items()
      if step in self._manager.all_steps()
    }
    return max(ranks, key=ranks.get, default=None)

  def is_best(
    self, numbers: Mapping[str, float], is_complete: bool = True
  ) -> bool:
    """Returns whether an evaluation is better than those of all checkpoints.

    For {}, which means no evaluation, the result is False.

    Args:
      numbers: metrics of the evaluation.
      is_complete: whether all evaluators were called. Otherwise, the metric
        `best_metric` may be missing.

    Raises:
      ValueError: the evaluation does not have the metric `best_metric`.
    """
    if not self._metric or not numbers:
      return False
    if self._metric not in numbers:
      if not is_complete:
        return False
      raise ValueError(
        f'config.best_metric={self._metric!r} is not one of the metrics of '
        'this run: ' + ', '.join(numbers)
      )
    value, best = numbers[self._metric], self.best_step()
    if best is None or not math.isfinite(value):
      return math.isfinite(value)
    if self.best_direction == 'min':
      return value < self._values[best]
    return value > self._values[best]

  def set_damaged_aside(self) -> int | None:
    """Moves damaged checkpoints to the folder `checkpoints_damaged`.

    It checks the newest checkpoint, and those with the largest and the smallest
    value of the metric, until all are intact. Which one is the best is known
    only after the task is made. With several processes, call it on one process
    and `reload` on the others.

    Returns:
      The step of the newest intact checkpoint. None if there is no checkpoint.

    Raises:
      ValueError: all checkpoints are damaged.
    """
    sound, damaged = {None}, []
    while not sound.issuperset(
      steps := (self.latest_step(), self._best('max'), self._best('min'))
    ):
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
        f'the checkpoint of step {step} is damaged ({damage}); it was moved to '
        f'{aside}'
      )
    newest = self.latest_step()
    if damaged and newest is None:
      raise ValueError(
        'all checkpoints are damaged: '
        + '; '.join(damaged)
        + '. The same command starts the run again from step 0'
      )
    for text in damaged:
      console.log_info(f'warning: {text}. Resuming from step {newest}')
    return newest

  def reload(self) -> None:
    """Updates the list of checkpoints after another process moved some."""
    self._manager.reload()

  def check_room(self, state: Any) -> None:
    """Raises OSError if the disk has no space for a checkpoint of `state`."""
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._folder).free
    if free < size:
      raise OSError(
        f'a checkpoint needs {size / 1e6:.1f} MB, but only {free / 1e6:.1f} MB '
        f'are free in {self._folder}. Delete files, or use another workdir=…'
      )

  def save(
    self, step: int, state: Any, numbers: Mapping[str, float] | None = None
  ) -> None:
    """Starts to save; returns when the arrays are copied from the devices.

    Args:
      step: number of completed updates.
      state: state of the run.
      numbers: metrics of this state, if it was evaluated.

    Raises:
      OSError: this or the previous checkpoint cannot be written.
    """
    self._note(step, numbers or {})
    if step == self.latest_step():
      return  # saved before, and evaluated only now
    with self._explained():
      # If a folder cannot be created, Orbax's threads wait five minutes. This
      # temporary file fails at once.
      tempfile.TemporaryFile(dir=self._folder).close()
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(_stored(state))),
        force=True,
      )
    self._is_saving = True

  def check(self) -> None:
    """Raises OSError if the last save failed; does not wait for a save."""
    if self._is_saving and not self._manager.is_saving_in_progress():
      self._is_saving = False
      self.wait()

  def restore(self, step: int, init_fn: Callable) -> Any:
    """Returns the state of a step, with the shardings of `init_fn`'s states.

    Raises:
      ValueError: the checkpoint cannot be read, or its arrays do not match.
    """
    abstract = jax.eval_shape(init_fn, jax.random.key(0))
    stored = self._manager.item_metadata(step)[_ITEM]
    if stored is not None:  # Orbax returns None if it cannot read them
      checkpoint_arrays.check(
        f'{self._folder}/{step}', stored, _stored(abstract)
      )
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(_stored(abstract))
        ),
      )[_ITEM]
    except Exception as error:  # of many types, from Orbax's storage layers
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
      raise ValueError(
        f'the checkpoint {self._folder}/{step} cannot be restored '
        f'({reason}). It may be from another version. Remove this folder to '
        'resume from an earlier checkpoint, or train with another workdir=…'
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
      console.log(f'warning: {error}')  # do not hide the run's own exception

  def wait(self) -> None:
    """Waits until all checkpoints are written.

    Raises:
      OSError: a checkpoint cannot be written.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until all checkpoints are written, and ends the manager."""
    self.wait()
    self._manager.close()

  @contextlib.contextmanager
  def _explained(self):
    """Turns exceptions of the storage layers into an OSError with a reason."""
    try:
      yield
    except Exception as error:
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
      if 'RESOURCE_EXHAUSTED' in reason or 'No space left' in reason:
        reason = 'the disk is full'
      elif os.strerror(errno.EFBIG) in str(error):
        reason = 'a file is larger than this process may write, see ulimit -f'
      raise OSError(
        f'a checkpoint cannot be written to {self._folder} ({reason}). '
        'Earlier checkpoints are intact. Fix the problem, then start the same '
        'command again to resume'
      ) from error


def _make_writable(folder):
  """Creates a folder; raises OSError if it cannot be created or written."""
  try:
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except FileExistsError as error:
    raise OSError(
      f'{folder} is not a folder, so checkpoints cannot be written. '
      'Remove it, or use another workdir=…'
    ) from error
  except OSError as error:
    raise OSError(
      f'checkpoints cannot be written to {folder}: '
      f'{error.strerror}. Change its permissions, or use another workdir=…'
    ) from error


def _check_notes(folder):
  """Raises ValueError if a metadata file would make Orbax fail.

  Orbax accepts a missing or incomplete file. It fails if the file has valid
  JSON that is not an object.
  """
  for path in glob.glob(
    os.path.join(glob.escape(folder), '*', '_CHECKPOINT_METADATA')
  ):
    try:
      value = json_files.read_json(path)
    except (OSError, ValueError):
      continue
    if not isinstance(value, dict):
      raise ValueError(f'{path} is damaged. Remove it: the file is not needed')


def _unused(path):
  """Returns `path`, with a number appended if the path exists."""
  names = itertools.chain([path], (f'{path}.{i}' for i in itertools.count(2)))
  return next(name for name in names if not os.path.exists(name))
