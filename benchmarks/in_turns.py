"""Compares the speed of vit_jax, plain Flax and timm on a CPU, in turns.

  python benchmarks/in_turns.py --model=ti16 --batch=16 \
      vit_jax flax timm vit_jax:malloc timm:malloc

Each contestant is LIBRARY[:ALLOCATOR] and runs in a process of its own. In each
round, one after the other runs a few steps, while the others wait. So other
work on the machine changes all times alike. The table has medians of the rounds
and their ratio to the first contestant.

The allocator is `kept`, the choice of vit_jax's commands, which is the default;
`malloc`, the unchanged one; or the path of a shared library to preload. `flax`
is a plain ViT of Flax's own layers. `timm`, compiled by PyTorch, needs the
extra `interop`. MODEL may also be an architecture of timm, which vit_jax then
loads from timm's files (not `flax`).
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time

from vit_jax.parallel import allocator

# --- the parent: takes turns -------------------------------------------------


def parse_arguments(arguments):
  """Returns the parsed command line."""
  parser = argparse.ArgumentParser(
    description=__doc__.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('contestants', nargs='+', help='LIBRARY[:ALLOCATOR]')
  parser.add_argument('--model', default='ti16')
  parser.add_argument(
    '--mode', default='training', choices=['training', 'inference']
  )
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--accum_steps', type=int, default=1, help='vit_jax only')
  parser.add_argument('--steps', type=int, default=2, help='steps in a turn')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


class Worker:
  """A process that runs steps when it is asked."""

  def __init__(self, contestant):
    kind = contestant.partition(':')[2]
    environment = dict(os.environ, JAX_PLATFORMS='cpu', CUDA_VISIBLE_DEVICES='')
    if os.path.exists(kind):
      environment['LD_PRELOAD'] = os.path.abspath(kind)
    elif kind in ('', 'kept'):
      environment |= allocator.find(environment)
    elif kind != 'malloc':
      sys.exit(
        f'{contestant}: there is no allocator {kind}. Use kept, malloc or the '
        'path of a shared library'
      )
    self.name = contestant
    self._process = subprocess.Popen(
      [sys.executable, *sys.argv, f'--worker={contestant}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      text=True,
    )

  def run(self, steps):
    """Returns {name: number}, for example seconds, of a turn."""
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      sys.exit(f'{self.name} ended with an error')
    return json.loads(line)

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def compare(arguments):
  """Runs all contestants in turns and prints the table."""
  workers = [Worker(name) for name in arguments.contestants]
  for worker in workers:
    first = worker.run(3)
    print(
      f'{worker.name}: ready after {first["since_start"]:.0f} s', flush=True
    )
  turns = {worker.name: [] for worker in workers}
  for _ in range(arguments.rounds):
    for worker in random.sample(workers, len(workers)):
      turns[worker.name].append(worker.run(arguments.steps))
  columns = 'ms', 'images/s', 'CPU ms', 'kernel ms', 'peak MB', 'time'
  print(f'| {arguments.model} {arguments.mode} | ' + ' | '.join(columns) + ' |')
  print('| --- |' + ' ---: |' * len(columns))
  base = None
  for worker in workers:
    seconds, cpu, kernel, peak = (
      statistics.median(turn[key] for turn in turns[worker.name])
      for key in ('seconds', 'cpu', 'kernel', 'peak')
    )
    base = base or seconds
    rate = arguments.batch / seconds
    print(
      f'| {worker.name} | {1e3 * seconds:.0f} | {rate:.1f} | {1e3 * cpu:.0f} '
      f'| {1e3 * kernel:.0f} | {peak / 2**10:.0f} | {seconds / base:.2f} |'
    )
    worker.close()


# --- the workers -------------------------------------------------------------


def _make(arguments):
  """Returns the function `run(steps)` of the contestant."""
  import model_steps  # not in the parent, which needs no JAX

  names = 'model', 'mode', 'batch', 'image_size', 'dtype', 'accum_steps'
  case = model_steps.Case(**{name: getattr(arguments, name) for name in names})
  return model_steps.MAKERS[arguments.worker.partition(':')[0]](case)


def work(arguments):
  """Runs as many steps as each line of the standard input says."""
  start = time.monotonic()
  output, sys.stdout = sys.stdout, sys.stderr
  run = _make(arguments)
  for line in sys.stdin:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    run(int(line))
    seconds, now = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    kernel = now.ru_stime - before.ru_stime
    cpu = now.ru_utime - before.ru_utime + kernel
    taken = {'seconds': seconds - began, 'cpu': cpu, 'kernel': kernel}
    found = {name: x / int(line) for name, x in taken.items()}
    found |= {'peak': now.ru_maxrss, 'since_start': seconds - start}
    print(json.dumps(found), file=output, flush=True)


if __name__ == '__main__':
  given = parse_arguments(sys.argv[1:])
  work(given) if given.worker else compare(given)
