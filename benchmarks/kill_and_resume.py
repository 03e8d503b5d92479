"""Kills runs at random moments, and compares what they end with.

  python benchmarks/kill_and_resume.py --runs=3 --kills=10

One run is left alone. Every other is killed so many times at random moments,
each time started again by the same command, and must end with the same
parameters, optimizer state and numbers, bit for bit. Prints a table; status 1
if anything differs.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax import scalars

_RUNS = flags.DEFINE_integer('runs', 3, 'Runs that are killed.')
_KILLS = flags.DEFINE_integer('kills', 10, 'Kills of each.')
_STEPS = flags.DEFINE_integer('steps', 300, 'Steps of a run.')
_EVERY = flags.DEFINE_integer('every', 10, 'Steps between two checkpoints.')
_SIGNAL = flags.DEFINE_enum('signal', 'KILL', ['KILL', 'TERM'], 'What is sent.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the random moments.')
_ROOT = pathlib.Path(__file__).parent.parent


def start(workdir):
  """A process that begins the run or goes on with it."""
  return subprocess.Popen(
      [sys.executable, '-m', 'vit_jax.main',
       '--config=configs/quickstart.py', f'--workdir={workdir}',
       f'--config.total_steps={_STEPS.value}', '--config.eval_every=50',
       f'--config.checkpoint_every={_EVERY.value}', '--config.log_every=5'],
      cwd=_ROOT, stderr=subprocess.DEVNULL)


def finish(workdir):
  """Runs to the end."""
  if start(workdir).wait():
    sys.exit(f'a run failed: see {workdir}/log.txt')


def steps_saved(workdir):
  """Steps whose checkpoint is whole, and whether one was cut short."""
  folder = pathlib.Path(workdir, 'checkpoints')
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  return ([int(name) for name in names if name.isdigit()],
          any('tmp' in name for name in names))


def kill_in_the_middle(workdir, rng):
  """Kills once at a random moment after a step was logged.

  Returns:
    (steps saved by then, whether a checkpoint was being written), or None if
    the run ended before.
  """
  process = start(workdir)
  log = pathlib.Path(workdir, 'log.txt')
  begun = log.stat().st_size if log.exists() else 0
  while process.poll() is None and 'first step done' not in (
      log.read_bytes()[begun:].decode() if log.exists() else ''):
    time.sleep(0.02)
  time.sleep(rng.uniform(0, 3))
  process.send_signal(getattr(signal, f'SIG{_SIGNAL.value}'))
  status = process.wait()
  if status == 0:
    return None
  assert status == (-signal.SIGKILL if _SIGNAL.value == 'KILL' else 143), status
  steps, cut_short = steps_saved(workdir)
  return max(steps, default=0), cut_short


def outcome(workdir):
  """(arrays of the last checkpoint, rows of numbers but for rates)."""
  steps, _ = steps_saved(workdir)
  arrays = ocp.StandardCheckpointer().restore(
      pathlib.Path(workdir, 'checkpoints', str(max(steps)), 'state').absolute())
  rows = [{name: value for name, value in row.items()
           if 'per_second' not in name}
          for row in scalars.read(os.path.join(workdir, 'metrics.jsonl'))]
  return arrays, rows


def differing(one, other):
  """How many arrays and rows of two outcomes are not the same bits."""
  leaves, others = jax.tree.leaves(one[0]), jax.tree.leaves(other[0])
  assert len(leaves) == len(others)
  arrays = sum(np.asarray(a).tobytes() != np.asarray(b).tobytes()
               for a, b in zip(leaves, others))
  return arrays, sum(a != b for a, b in zip(one[1], other[1])) + abs(
      len(one[1]) - len(other[1]))


def main(_):
  logging.set_verbosity(logging.ERROR)
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as folder:
    finish(f'{folder}/undisturbed')
    expected = outcome(f'{folder}/undisturbed')
    print(f'{len(jax.tree.leaves(expected[0]))} arrays, {len(expected[1])} '
          f'rows of numbers, {_STEPS.value} steps, SIG{_SIGNAL.value}\n\n'
          '| run | kills | newest checkpoint at each | while one was being '
          'written | arrays differing | rows differing |\n'
          '| --- | ---: | --- | ---: | ---: | ---: |', flush=True)
    failed = False
    for run in range(1, _RUNS.value + 1):
      workdir, kills = f'{folder}/run{run}', []
      for _ in range(_KILLS.value):
        kill = kill_in_the_middle(workdir, rng)
        if kill is None:
          break
        kills.append(kill)
      finish(workdir)
      arrays, rows = differing(outcome(workdir), expected)
      failed |= bool(arrays or rows)
      print(f'| {run} | {len(kills)} | {" ".join(str(k[0]) for k in kills)} | '
            f'{sum(k[1] for k in kills)} | {arrays} | {rows} |', flush=True)
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  app.run(main)
