"""Kills runs at random moments, and compares their results.

  python benchmarks/kill_and_resume.py --folder=FOLDER --runs=10 --kills=10

One run is not interrupted. All other runs are killed --kills times, and started
again by the same command. They are evaluated, save checkpoints, and average the
parameters (EMA). All runs must end with the same parameters, averages,
optimizer state and metrics, bit for bit. Half of the random moments are counted
from the start of the process, up to some seconds of training. The other half
are counted from the first step, so that the run makes progress. The last kill
of a run is at its end. The program prints a table. Its exit status is 1 if a
result differs.

Finished runs are stored in --folder, and the same command does the others.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.run.writers import metric_log

_FOLDER = flags.DEFINE_string('folder', None, 'Folder of the runs.')
flags.mark_flag_as_required('folder')
_DATA_ON = flags.DEFINE_string('data_on', 'device', 'config.data_on')
_RUNS = flags.DEFINE_integer('runs', 3, 'Number of runs that are killed.')
_KILLS = flags.DEFINE_integer('kills', 10, 'Number of kills for each run.')
_STEPS = flags.DEFINE_integer('steps', 300, 'Training steps of each run.')
_EVERY = flags.DEFINE_integer('every', 10, 'Steps between two checkpoints.')
_SIGNAL = flags.DEFINE_enum(
  'signal', 'KILL', ['KILL', 'TERM'], 'Signal that kills a run.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Random seed for the moments.')
_ROOT = pathlib.Path(__file__).parent.parent


def start(workdir):
  """Starts a process that begins or resumes the run; returns the process."""
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'vit_jax.main',
      '--config=configs/quickstart.py',
      f'--workdir={workdir}',
      f'--config.total_steps={_STEPS.value}',
      '--config.eval_every=50',
      f'--config.checkpoint_every={_EVERY.value}',
      '--config.log_every=5',
      '--config.ema_decay=0.99',
      f'--config.data_on={_DATA_ON.value}',
      '--noreport',
    ],
    cwd=_ROOT,
    stderr=subprocess.DEVNULL,
  )


def finish(workdir):
  """Runs training to its last step."""
  if start(workdir).wait():
    sys.exit(f'a run failed: see {workdir}/log.txt')


class Log:
  """The log lines of a process that starts now."""

  def __init__(self, workdir):
    self._path = pathlib.Path(workdir, 'log.txt')
    self._begun = self._path.stat().st_size if self._path.exists() else 0

  def has(self, text):
    return (
      self._path.exists()
      and text.encode() in (self._path.read_bytes()[self._begun :])
    )

  def wait(self, text, process):
    """Waits until the log contains `text`, or the process has ended."""
    while process.poll() is None and not self.has(text):
      time.sleep(0.02)


def folders(workdir):
  """Returns {(name, inode)} of the entries in the checkpoint folder."""
  folder = pathlib.Path(workdir, 'checkpoints')
  return (
    {(p.name, p.stat().st_ino) for p in folder.iterdir()}
    if (folder.exists())
    else set()
  )


def steps_saved(workdir):
  """Returns the steps that have a complete checkpoint."""
  return [int(name) for name, _ in folders(workdir) if name.isdigit()]


LAST = ' {0}/{0} '  # logged for the last step, before its checkpoint is written
WRITING = 'a checkpoint being written'
# Phase: log texts that show its start. A process is in the last phase that has
# one of its texts in the log. The first phase needs no text.
PHASES = {
  'starting, restoring': (),
  'first step': (' steps of ', 'resuming from'),
  'training': ('first step done',),
  'ending': (LAST,),
}


def phase(log, before, workdir):
  """Returns the phase that a process was in when it was killed."""
  if any('tmp' in name for name, _ in folders(workdir) - before):
    return WRITING
  return [
    name
    for name, texts in PHASES.items()
    if not texts or any(log.has(text.format(_STEPS.value)) for text in texts)
  ][-1]


def kill(workdir, start_seconds, rng, at_end):
  """Starts the run, and kills its process at a random moment.

  Returns:
    (newest saved step, phase of the process), or None if the run ended first.
  """
  log, before = Log(workdir), folders(workdir)
  process = start(workdir)
  if at_end:
    log.wait(LAST.format(_STEPS.value), process)
    time.sleep(rng.uniform(0, 1))
  elif rng.random() < 0.5:
    time.sleep(rng.uniform(0, start_seconds + 3))
  else:
    log.wait('first step done', process)
    time.sleep(rng.uniform(0, 3))
  process.send_signal(getattr(signal, f'SIG{_SIGNAL.value}'))
  status = process.wait()
  if status == 0:
    return None
  # The handler of SIGTERM is only installed when training begins.
  assert status in (
    [-signal.SIGKILL] if _SIGNAL.value == 'KILL' else [-signal.SIGTERM, 143]
  ), status
  return max(steps_saved(workdir), default=0), phase(log, before, workdir)


def undisturbed(workdir):
  """Finishes a run without a kill; returns the seconds to its first step."""
  begun, log = time.monotonic(), Log(workdir)
  process = start(workdir)
  log.wait('first step done', process)
  seconds = time.monotonic() - begun
  if process.wait():
    sys.exit(f'the undisturbed run failed: see {workdir}/log.txt')
  return seconds


def outcome(workdir):
  """Returns (arrays of the last checkpoint, rows of metrics without rates)."""
  steps = steps_saved(workdir)
  arrays = ocp.StandardCheckpointer().restore(
    pathlib.Path(workdir, 'checkpoints', str(max(steps)), 'state').absolute()
  )
  rows = [
    {name: value for name, value in row.items() if 'per_second' not in name}
    for row in metric_log.read(os.path.join(workdir, 'metrics.jsonl'))
  ]
  return arrays, rows


def differing(one, other):
  """Counts the (arrays, rows) that differ between two outcomes."""
  leaves, others = jax.tree.leaves(one[0]), jax.tree.leaves(other[0])
  assert len(leaves) == len(others)
  arrays = sum(
    np.asarray(a).tobytes() != np.asarray(b).tobytes()
    for a, b in zip(leaves, others, strict=True)
  )
  return arrays, sum(
    a != b for a, b in zip(one[1], other[1], strict=False)
  ) + abs(len(one[1]) - len(other[1]))


def reference(folder):
  """Finishes a run without a kill, if there is none; returns what to expect.

  Returns:
    (outcome of the run, seconds to its first step).
  """
  path = pathlib.Path(folder, 'start_seconds.json')
  if not path.exists():
    for name in ('compiled', 'undisturbed'):  # later starts use the cache
      shutil.rmtree(f'{folder}/{name}', ignore_errors=True)
      seconds = undisturbed(f'{folder}/{name}')
    path.write_text(json.dumps(seconds))
  return outcome(f'{folder}/undisturbed'), json.loads(path.read_text())


def killed_run(workdir, start_seconds, expected, rng):
  """Kills a run many times, and finishes it.

  Returns:
    [number of kills, newest checkpoint at each, kills in each phase, arrays
    that differ, rows that differ].
  """
  shutil.rmtree(workdir, ignore_errors=True)  # its kills are unknown
  steps, phases = [], collections.Counter()
  for i in range(_KILLS.value):
    killed = kill(workdir, start_seconds, rng, i == _KILLS.value - 1)
    if killed:
      steps.append(killed[0])
      phases[killed[1]] += 1
  finish(workdir)
  return [
    len(steps),
    ' '.join(map(str, steps)),
    *(phases[name] for name in (*PHASES, WRITING)),
    *differing(outcome(workdir), expected),
  ]


def main(_):
  logging.set_verbosity(logging.ERROR)
  folder = os.path.abspath(_FOLDER.value)
  os.makedirs(folder, exist_ok=True)
  expected, start_seconds = reference(folder)
  print(
    f'{len(jax.tree.leaves(expected[0]))} arrays, {len(expected[1])} '
    f'rows of metrics, {_STEPS.value} steps, SIG{_SIGNAL.value}, '
    f'data on the {_DATA_ON.value}, {start_seconds:.1f} s to the first step\n'
  )
  columns = [*PHASES, WRITING, 'arrays differing', 'rows differing']
  print('| run | kills | newest checkpoint at each kill |', end=' ')
  print(' | '.join(columns), '|\n| --- | ---: | --- |', end='')
  print(' ---: |' * len(columns), flush=True)
  failed = False
  for run in range(1, _RUNS.value + 1):
    path = pathlib.Path(folder, f'run{run}.json')
    if not path.exists():
      rng = random.Random(f'{_SEED.value} {run}')
      workdir = f'{folder}/run{run}'
      row = killed_run(workdir, start_seconds, expected, rng)
      path.write_text(json.dumps(row))
    row = json.loads(path.read_text())
    failed |= any(row[-2:])
    print('|', ' | '.join(map(str, [run, *row])), '|', flush=True)
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  app.run(main)
