"""The length of a run and of its warm-up in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict


class Length(NamedTuple):
  """Numbers of updates."""

  total_steps: int
  warmup_steps: int


def in_steps(
  epochs: float, config: ConfigDict, num_train: int | None, name: str
) -> int:
  """Returns the number of updates in some epochs: 0, or at least 1.

  Args:
    epochs: number of epochs.
    config: settings of the run.
    num_train: number of training examples; None if it is unknown.
    name: setting of the epochs, such as 'total_epochs', for messages.

  Raises:
    ValueError: the number of training examples is needed, but unknown.
  """
  if not epochs:
    return 0
  if not num_train:
    others = {
      x: f'set config.{x}_steps in place of config.{x}_epochs'
      for x in ('total', 'warmup')
    }
    other = others.get(name.removesuffix('_epochs'), f'set config.{name}=0')
    raise ValueError(
      f'config.{name}={epochs} needs the number of training examples, which is '
      'unknown for these data. Give num_train to vit_jax.data.from_batches, or '
      + other
    )
  return max(1, round(epochs * num_train / config.batch))


def resolve(config: ConfigDict, num_train: int | None) -> Length:
  """Returns the `Length` of a run on `num_train` examples.

  Raises:
    ValueError: the number of training examples is needed, but unknown.
  """
  total_steps, warmup_steps = (
    in_steps(config[f'{name}_epochs'], config, num_train, f'{name}_epochs')
    or config[f'{name}_steps']
    for name in ('total', 'warmup')
  )
  return Length(total_steps, warmup_steps)


def shortest(config: ConfigDict) -> Length:
  """Returns a `Length` that suits the schedule, for checks without the data."""
  warmup_steps = config.warmup_steps or int(config.warmup_epochs > 0)
  total_steps = config.total_steps
  if config.total_epochs:
    total_steps = 1 + max(
      warmup_steps + config.cooldown_steps, *config.drop_steps, 0
    )
  return Length(total_steps, warmup_steps)


def check_warmup(config: ConfigDict, length: Length) -> None:
  """Raises ValueError if `config.warmup_epochs` is as long as the run."""
  epochs, found = config.warmup_epochs, ''
  if not epochs:
    return
  if config.total_epochs and epochs >= config.total_epochs:
    found = f'config.total_epochs={config.total_epochs}'
  elif length.warmup_steps >= length.total_steps:
    found = (
      f'the run: it has {length.total_steps} updates, and the warm-up '
      f'{length.warmup_steps}'
    )
  if found:
    raise ValueError(
      f'config.warmup_epochs={epochs} must be less than {found}. Lower '
      'config.warmup_epochs or train longer'
    )
