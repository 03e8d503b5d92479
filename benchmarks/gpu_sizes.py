"""What benchmarks/gpu.py measures, and the small form for its rehearsal."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The size of everything that is measured."""

  speed: tuple = (  # (model, image size, smallest batch)
    ('b16', 224, 64),
    ('s16', 224, 128),
    ('l16', 224, 32),
    ('b16', 384, 16),
  )
  max_batch: int = 2048
  layers: tuple = ('b16', 12, 224, 128)  # model, layers, image size, batch
  timing: tuple = ('--steps=10', '--repeats=5')
  case_seconds: float = 120
  selected_tests: str = ''
  images: tuple = (50_000, 10_000)  # for training and for testing
  settings: tuple = ()  # of training runs
  rate_steps: int = 200  # steps that measure the rate
  train_seconds: float = 0.85 * 600  # the rest is for all but the steps
  stops: bool = False  # whether the first call of a training run is cut short


FULL = Sizes()
# The rehearsal does the same on a CPU, in minutes.
TINY = Sizes(
  speed=(('testing', 32, 2),),
  max_batch=4,
  layers=('testing', 1, 32, 2),
  timing=('--steps=2', '--repeats=2'),
  case_seconds=0,
  selected_tests=' and not fused',
  images=(640, 200),
  settings=(
    *('model.hidden_size=32', 'model.mlp_dim=64', 'model.num_heads=2'),
    *('model.num_layers=1', 'batch=64', 'batch_eval=100'),
    *('warmup_epochs=0', 'warmup_steps=5'),
    *('log_every=10', 'eval_every=20', 'checkpoint_every=5'),
  ),
  rate_steps=20,
  train_seconds=20,
  stops=True,
)
