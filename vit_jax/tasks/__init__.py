"""Tasks: what a run learns, and its metrics. Each task has its own file.

Imports `augment`, `checkpoint`, `console`, `data`, `evaluators`, `inference`,
`models`, `optim` and `parallel`. The training step, the evaluators, and the
counts of memory and FLOPs use only a `task.Task`. They contain nothing about
classification.
"""

from collections.abc import Callable
import importlib
import pkgutil
import types

from ml_collections import ConfigDict


def get_module(name: str) -> types.ModuleType:
  """Returns the module of a task.

  It has `make`. It may have `check`. It has `of_model` if a trained model
  can be evaluated without the state of its run. It has `make_encoder` if it
  trains on features; see `encoder_maker`. `TRAINS` names another task, if the
  trained model is one of that task. `USES_LENGTH` is true if an update depends
  on the number of updates of the run.

  Raises:
    ValueError: there is no task with this name.
  """
  names = {m.name for m in pkgutil.iter_modules(__path__)} - {
    *('losses', 'reconstruction', 'task', 'views')
  }
  if name not in names:
    raise ValueError(
      f'config.task={name!r} is not one of the tasks: '
      + ', '.join(sorted(names))
    )
  return importlib.import_module(f'{__name__}.{name}')


def get_maker(name: str) -> Callable:
  """Returns the function `make(config, data) -> task.Task` of a task."""
  return get_module(name).make


def trained_task(name: str) -> str:
  """Returns the task of the models that the task `name` trains."""
  return name if name == 'own' else getattr(get_module(name), 'TRAINS', name)


def uses_length(name: str) -> bool:
  """Returns whether an update of a task depends on the length of the run."""
  return name != 'own' and getattr(get_module(name), 'USES_LENGTH', False)


def encoder_maker(name: str) -> Callable | None:
  """Returns the function `make_encoder` of a task, or None.

  A task with this function trains on the outputs of frozen parameters, which a
  run computes once. `make_encoder(config, data)` returns a function
  (params, images [B, H, W, C]) -> features [B, D].
  """
  if name == 'own':
    return None
  return getattr(get_module(name), 'make_encoder', None)


def check(config: ConfigDict) -> None:
  """Raises ValueError if the settings do not suit the task `config.task`."""
  check_task = getattr(get_module(config.task), 'check', None)
  if check_task:
    check_task(config)
