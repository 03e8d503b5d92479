"""Objects that the caller of a run gives in place of settings."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import inspect
from typing import Any

from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import tasks
from vit_jax.run import fingerprints

_EVALUATOR = 'evaluators[{!r}]'

# Settings that given data replace. They get their defaults, so that they do not
# distinguish runs.
_UNUSED = (
  *('train_split', 'test_split', 'tfds_data_dir', 'in_memory_bytes'),
  *('shuffle_buffer', 'max_bad_images'),
)
# Settings of config.pp that batches from Python do not use.
_UNUSED_PP = (
  *('min_area', 'flip', 'train_crop', 'train_size', 'train_interpolation'),
)


@dataclasses.dataclass(frozen=True)
class Given:
  """The caller's data and functions; see `train.train_and_evaluate`.

  None and empty collections mean that the settings of the config are used.
  """

  data: Any = None
  task: str | Callable | None = None
  loss_fn: Callable | None = None
  optimizer: Any = None
  evaluators: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
  hooks: Sequence[Callable] = ()
  writers: Sequence[Callable] = ()

  def describe(self) -> dict[str, Any]:
    """Returns {argument: `fingerprints.describe` of the object, or None}.

    Hooks and writers are omitted, because they do not change the state. Data
    are omitted, because they have their own fingerprint, and a name of a task
    is a setting.
    """
    objects = {
      'task': self.task if callable(self.task) else None,
      'loss_fn': self.loss_fn,
      'optimizer': self.optimizer,
      **{_EVALUATOR.format(name): x for name, x in self.evaluators.items()},
    }
    return {
      name: None if x is None else fingerprints.describe(x)
      for name, x in objects.items()
    }

  def check_equal(
    self, stored: Mapping[str, Any], measured: Iterable[str], workdir: str
  ) -> None:
    """Raises ValueError if a run was started with other objects.

    Args:
      stored: the result of `describe` when the run started.
      measured: names of the metrics that the run already has. An evaluator
        without metrics may change.
      workdir: the run folder, for the message.
    """
    found = self.describe()
    changes = {
      name: fingerprints.difference(stored.get(name), found.get(name))
      for name in ('task', 'loss_fn', 'optimizer')
    }
    for name in self.evaluators:
      key = _EVALUATOR.format(name)
      if stored.get(key) and any(x.endswith(f'_{name}') for x in measured):
        changes[key] = fingerprints.difference(stored[key], found[key])
    changes = {name: change for name, change in changes.items() if change}
    if changes:
      raise ValueError(
        f'{workdir} has a run with other Python objects:\n'
        + '\n'.join(f'  {name}: {x}' for name, x in changes.items())
        + '\nUse the objects of the run to resume it, or another workdir=… for '
        'a new run. A changed evaluator can also get another name. If an '
        'object only looks changed, set its attribute `fingerprint` to a text '
        'of your own before the first start'
      )

  def in_config(self, config: ConfigDict) -> ConfigDict:
    """Returns a copy of the config with the names of the given task and data.

    A function that makes the task has the name 'own', so that the settings in
    the run folder do not name a task that was not used.

    Raises:
      ValueError: `data` is not from a function of `vit_jax.data`.
    """
    config = config.copy_and_resolve_references()
    if self.data is not None:
      if not hasattr(self.data, 'agree'):
        raise ValueError(
          f'data is a {type(self.data).__name__}. Give arrays as '
          'vit_jax.data.from_arrays(images, labels), and batches, such as a '
          'tf.data.Dataset, a DataLoader or an iterator, as '
          'vit_jax.data.from_batches(…)'
        )
      defaults = base_config.get_config()
      config.update({name: defaults[name] for name in _UNUSED})
      if not getattr(self.data.pipeline, 'prepares', True):
        config.pp.update({name: defaults.pp[name] for name in _UNUSED_PP})
      config.dataset = self.data.name
    if self.task is not None:
      config.task = self.task if isinstance(self.task, str) else 'own'
    return config

  def make_task(self, config: ConfigDict) -> Callable:
    """Returns the maker of the task: `(config, data) -> task.Task`.

    Raises:
      ValueError: the task is unknown, or `loss_fn` cannot replace its loss.
    """
    if callable(self.task):
      maker, name = self.task, 'task'
    else:
      maker, name = tasks.get_maker(config.task), f'config.task={config.task}'
    if not self.loss_fn:
      return maker
    if callable(self.task) or (
      'loss_fn' not in inspect.signature(maker).parameters
    ):
      raise ValueError(
        f'loss_fn cannot be used, because {name} defines its own loss. Change '
        'the loss in that task'
      )
    return functools.partial(maker, loss_fn=self.loss_fn)
