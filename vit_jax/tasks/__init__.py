"""What a run learns: one file for each task, and the seam that they share.

Imports `evaluators` and what is below it. The training loop, the step, the
evaluation, memory and FLOPs know a `task.Task`, and nothing of classification.
"""

from collections.abc import Callable
import importlib
import pkgutil

from ml_collections import ConfigDict


def get_maker(name: str) -> Callable:
  """The function `make(config, data) -> task.Task` of a task's file.

  Raises:
    ValueError: there is no task of that name.
  """
  names = sorted({m.name for m in pkgutil.iter_modules(__path__)} - {'task'})
  if name not in names:
    raise ValueError(
      f'config.task={name!r}: there is no such task; there are '
      + ', '.join(names)
    )
  return importlib.import_module(f'{__name__}.{name}').make


def check(config: ConfigDict) -> None:
  """Raises a ValueError for settings that `config.task` cannot work with."""
  check_task = getattr(
    importlib.import_module(get_maker(config.task).__module__), 'check', None
  )
  if check_task:
    check_task(config)
