"""The length of a run in steps."""

from ml_collections import ConfigDict


def resolve_steps(config: ConfigDict, num_train: int | None) -> int:
  """Returns the number of updates of a run on `num_train` examples."""
  if not config.total_epochs:
    return config.total_steps
  if not num_train:
    raise ValueError(
      f'config.total_epochs={config.total_epochs} needs the number of training '
      'examples, which is unknown for these data. Give num_train to '
      'vit_jax.data.from_batches, or set config.total_steps in place of '
      'config.total_epochs'
    )
  return max(1, round(config.total_epochs * num_train / config.batch))
