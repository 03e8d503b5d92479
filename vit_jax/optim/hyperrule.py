"""The settings of BiT's fine-tuning, from the training images alone.

BiT-HyperRule: Kolesnikov et al. 2020 (arXiv 1912.11370), section 3.3, with the
numbers of the authors' code.
"""

from typing import Any
from typing import NamedTuple

_LARGEST_SMALL_AREA = 96 * 96  # in pixels, excluded


class _Length(NamedTuple):
  """The length of a run, for at least `num_examples` training examples."""

  num_examples: int
  total_steps: int
  warmup_steps: int
  drop_steps: tuple[int, ...]
  mixup: float


_LENGTHS = (
  _Length(0, 500, 100, (200, 300, 400), 0.0),
  _Length(20_000, 10_000, 500, (3_000, 6_000, 9_000), 0.1),
  _Length(500_000, 20_000, 500, (6_000, 12_000, 18_000), 0.1),
)


def settings(num_examples: int, image_size: tuple[int, int]) -> dict[str, Any]:
  """Returns {'total_steps': …, 'pp.crop': …}, the settings of a run.

  Args:
    num_examples: number of training examples.
    image_size: (height, width) of the training images, in pixels.
  """
  length = [x for x in _LENGTHS if num_examples >= x.num_examples][-1]
  height, width = image_size
  is_small = height * width < _LARGEST_SMALL_AREA
  return {
    'total_steps': length.total_steps,
    'warmup_steps': length.warmup_steps,
    'drop_steps': length.drop_steps,
    'augment.mixup': length.mixup,
    'pp.train_size': 160 if is_small else 512,
    'pp.crop': 128 if is_small else 480,
  }
