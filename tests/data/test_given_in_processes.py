"""Given data in two processes: each gives its rows, and errors reach both."""

import pytest

from tests.data import test_given_batches
from tests.parallel import test_processes
from vit_jax import train

SCRIPT = """
import gc, json, sys
gc.disable()
import jax, numpy as np
import vit_jax
from vit_jax import console, train
from vit_jax.data.given import batches as given_batches
from vit_jax.parallel import processes, sharding
from tests.data import test_given_batches as cases
from tests.parallel.test_processes import wide_config

coordinator, count, index, workdir, _ = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
index = int(index)
if index:
  console.be_silent()

def part(batch):
  return {name: x[index::2] for name, x in batch.items()}

def own(step):  # the rows of this process: the first or the second half
  rows = slice(16 * index, 16 * index + 16)
  return {name: x[rows] for name, x in cases.ready(step).items()}

def test():
  return map(part, map(cases.as_ready, cases.split_in([50])))

def run(name, train_batches, test=test, **settings):
  config = wide_config(checkpoint_every=0, eval_every=0, **settings)
  return train.train_and_evaluate(config, workdir + name,
      data=cases.in_batches(train_batches, test))

def message(*args, **settings):
  try:
    run('/failed', *args, **settings)
  except ValueError as error:
    return str(error)

run('/whole', own)
config = wide_config(checkpoint_every=0, eval_every=0)
for name in ('arrays', 'resized', 'device'):
  config.data_on = 'device' if name == 'device' else 'host'
  config.pp.train_resize_on = 'device' if name == 'resized' else 'host'
  train.train_and_evaluate(
    config, f'{workdir}/{name}', data=cases.from_arrays())

# Processes that share rows must give equal rows.
error = message(own, **{'mesh.tensor': 2, 'batch': 16})
assert 'processes 0 and 1 hold the same rows' in error, error
error = message(own, lambda: map(part, cases.FIRST[: 1 + index]))
assert 'the processes give [16, 32] examples of test' in error, error
error = message(lambda step: cases.ready(step))
assert '32 examples, but config.batch=32 and this process gives 16 of' in (
    error), error
if not index:  # a warning
  logged, log_info = [], console.log_info
  console.log_info = lambda text: (logged.append(text), log_info(text))
run('/equal', lambda step: {k: x[:16] for k, x in cases.ready(step).items()},
    total_steps=3)
assert index or any('two processes give equal examples' in x for x in logged)

# An iterator ends early in one process: both stop, with the state saved.
def ends(iterator_of=range(2 if index else 99)):
  return (own(step) for step in iterator_of)
error = message(iter(ends()))
assert 'has ended' in error and (index or error.startswith('process 1')), error
"""


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
  workdir = tmp_path / 'two'
  workdir.mkdir()
  started = test_processes.start_all(2, workdir, script=SCRIPT)
  for name, data in (
    (
      'whole',
      test_given_batches.in_batches(
        test_given_batches.ready,
        list(
          map(test_given_batches.as_ready, test_given_batches.split_in([50]))
        ),
      ),
    ),
    ('arrays', test_given_batches.from_arrays()),
    ('resized', test_given_batches.from_arrays()),
    ('device', test_given_batches.from_arrays()),
  ):
    config = test_processes.wide_config(checkpoint_every=0, eval_every=0)
    config.data_on = 'device' if name == 'device' else 'host'
    config.pp.train_resize_on = 'device' if name == 'resized' else 'host'
    train.train_and_evaluate(config, str(tmp_path / name), data=data)
  test_processes.finish(started)
  for name in ('whole', 'arrays', 'resized', 'device'):
    test_processes.assert_same_run(workdir / name, tmp_path / name)
  assert (workdir / 'failed/checkpoints/2').exists()
