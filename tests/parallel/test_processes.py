"""Several processes on this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from tests import classifier
from tests import compilation
from tests import ROOT
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import without_rates
from vit_jax import models
from vit_jax import train
from vit_jax.optim import optimizer
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing
from vit_jax.tasks import task

# A run of several processes. Process 0 writes the final state to `workdir`.npz.
SCRIPT = """
import gc, json, os, sys
gc.disable()  # saves seconds at each start
import jax, numpy as np
from vit_jax import console, train
from vit_jax.parallel import processes, sharding
from vit_jax.run import checkpointing
from tests.parallel.test_processes import wide_config

coordinator, count, index, workdir, settings = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
assert os.environ['XLA_FLAGS'].endswith(
    f'device_count={jax.local_device_count()}')
if not processes.is_main():
  console.be_silent()
config = wide_config(**json.loads(settings))
state, *_ = train.train_and_evaluate(config, workdir)
whole = sharding.gather(state)
if processes.is_main():
  assert not state.params['Transformer']['encoderblock_0']['MlpBlock_0'][
      'Dense_0']['kernel'].is_fully_addressable
  np.savez(workdir + '.npz', *map(np.asarray, jax.tree.leaves(whole)))

# Process 0 finds its newest and best checkpoints. The others find older ones.
for name, seen in (('latest_step', [2, None]), ('best_step', [4, 2])):
  steps_of = getattr(checkpointing.Checkpoints, name)
  if not processes.is_main():
    setattr(checkpointing.Checkpoints, name, lambda _: 2)
  try:
    train.train_and_evaluate(config, workdir)
  except ValueError as error:
    assert f'[4, None] on process 0 and {seen} on process 1' in str(error)
  else:
    raise AssertionError(f'{name} is not compared')
  setattr(checkpointing.Checkpoints, name, steps_of)
"""


# Steps, checkpoints and evaluations without a model or data, to save time. Only
# process 1 receives SIGTERM, during an evaluation.
TERMINATED = """
import os, signal, sys, time
import numpy as np
from vit_jax.parallel import processes, sharding
from vit_jax.parallel import preemption
from vit_jax.run import checkpointing

coordinator, count, index, workdir, _ = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
everywhere = sharding.replicated(sharding.make_mesh())
checkpoints = checkpointing.Checkpoints(workdir, keep=9)

def batches(step):
  for batch in range(150):
    time.sleep(0.02)
    if (step, batch) == (102, 20):
      if not processes.is_main():
        os.kill(os.getpid(), signal.SIGTERM)
      # Orbax would also ask for preemption, and JAX would count the request.
      checkpoints.save(step, {'x': sharding.put(np.ones(8), everywhere)})
      time.sleep(0.5)
    yield batch

def raised(function, *args):
  try:
    function(*args)
  except ValueError as error:
    return str(error)

# Only process 0 looks for damage. Its errors reach all processes.
main = processes.main_only(lambda: [checkpoints.set_damaged_aside(), index])
assert main == [None, '0'], main
assert "'from 0'" in raised(processes.main_only, lambda: int(f'from {index}'))

# Process 0 comes first: the other process finds its file.
left = workdir + '.left'
def leave():
  if processes.is_main():
    time.sleep(0.3)
    open(left, 'w').close()
  return os.path.exists(left)
found = processes.exchange(processes.main_first(leave))
assert found == [True, True], found
assert "'from 1'" in raised(
    processes.main_first, lambda: index == '0' or int(f'from {index}'))

# Process 0 waits for the other process before `main_only` calls the function.
if not processes.is_main():
  time.sleep(0.3)
  os.remove(left)
assert processes.main_only(lambda: not os.path.exists(left))

# All processes notice a difference.
error = raised(processes.check_same, {'same': 0, 'other': int(index)})
assert 'other is 0 on process 0 and 1 on process 1' in error, error
processes._SHARED_SECONDS = 0.1
processes.check_shared(workdir)
assert 'not visible to process 1' in raised(
    processes.check_shared, workdir if processes.is_main() else os.getcwd())

with preemption.watching():
  for step in range(101, 104):
    assert not preemption.requested()
    try:
      for last in preemption.checked(batches(step)):
        pass
    except preemption.Preempted:
      assert preemption.requested()  # also at the end of the step
      print('stopped in step', step, 'after batch', last)
      break
checkpoints.close()
"""


def wide_config(**settings):
  """Returns a config with a model that is large enough to be split."""
  config = make_config(total_steps=4)
  config.model.update(dict(hidden_size=32, mlp_dim=256, num_heads=4))
  config.update_from_flattened_dict(settings)
  return config


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def environment(num_devices=1, **more):
  flags = (
    f'{compilation.FLAGS} --xla_force_host_platform_device_count={num_devices}'
  )
  return {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags, **more}


def start_all(count, workdir, num_devices=1, script=SCRIPT, **settings):
  """Starts the processes of one run of a script."""
  coordinator = f'localhost:{free_port()}'
  return [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        script,
        coordinator,
        str(count),
        str(index),
        str(workdir),
        json.dumps(settings),
      ],
      cwd=ROOT,
      text=True,
      env=environment(num_devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for index in range(count)
  ]


def finish(started):
  """Returns the outputs of all processes, which must succeed."""
  try:
    outputs = [process.communicate(timeout=300)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [p.returncode for p in started] == [0] * len(started), outputs
  return outputs


def restored_leaves(workdir, config):
  """Returns the arrays of the newest checkpoint, restored on one device."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  settings = task.model_settings(config)
  model = models.get_model(settings.pop('name'), num_classes=10, **settings)
  init_fn = classifier.make_init_fn(
    model, optimizer.make_optimizer(config, lambda step: 0.0), (8, 8), mesh
  )
  checkpoints = checkpointing.Checkpoints(f'{workdir}/checkpoints', 2)
  return jax.tree.leaves(checkpoints.restore(config.total_steps, init_fn))


def assert_same_run(workdir, other, rtol=1e-6):
  rows, others = (without_rates(rows_of(w)) for w in (workdir, other))
  assert [r['step'] for r in rows] == [r['step'] for r in others]
  assert rows[-1]['accuracy_test'] == others[-1]['accuracy_test']
  for row, expected in zip(rows, others, strict=True):
    np.testing.assert_allclose(
      [row[name] for name in sorted(row)],
      [expected[name] for name in sorted(expected)],
      rtol=rtol,
    )


AUGMENTED = {
  'augment.pad': 1,
  'augment.policy': 'trivial',
  'augment.mixup': 0.8,
  'augment.cutmix': 1.0,
  'augment.mix_mode': 'elem',  # Both of them occur in each batch.
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'count, num_devices, mesh, settings',
  [
    (2, 1, {'mesh.fsdp': 2}, AUGMENTED),
    (4, 2, {'mesh.fsdp': 2, 'mesh.tensor': 4}, {}),
  ],
)
def test_several_processes_train_like_one(
  tmp_path, count, num_devices, mesh, settings
):
  """Losses and metrics are equal, and one process can restore the state."""
  workdir = tmp_path / 'several'
  workdir.mkdir()
  started = start_all(count, workdir, num_devices, **mesh, **settings)
  train.train_and_evaluate(wide_config(**settings), str(tmp_path / 'alone'))
  outputs = finish(started)
  assert 'done: ' in outputs[0] and 'done: ' not in ''.join(outputs[1:])
  assert_same_run(workdir, tmp_path / 'alone')
  assert len(list(workdir.glob('events*'))) == 1
  if settings:  # the first batch, row by row
    pictures = [x / 'augmented.png' for x in (workdir, tmp_path / 'alone')]
    np.testing.assert_array_equal(*map(np.asarray, map(Image.open, pictures)))

  final = np.load(f'{workdir}.npz')
  restored = restored_leaves(workdir, wide_config())
  assert len(final.files) == len(restored)
  for name, leaf in zip(
    final.files, restored, strict=True
  ):  # NumPy loads bfloat16 as bytes
    assert final[name].tobytes() == np.asarray(leaf).tobytes()


def test_all_processes_stop_an_evaluation_at_the_same_batch(tmp_path):
  outputs = finish(start_all(2, tmp_path, script=TERMINATED))
  first, second = (
    re.search(r'stopped in step 102 after batch (\d+)', text).group(1)
    for text in outputs
  )
  assert first == second and 19 <= int(first) < 149
  assert [p.name for p in tmp_path.iterdir()] == ['102']


@pytest.mark.slow
def test_a_killed_process_stops_the_others_and_the_run_resumes(tmp_path):
  def start(coordinator):
    return [
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'vit_jax.main',
          f'--config={ROOT}/configs/quickstart.py',
          f'--workdir={tmp_path}',
          '--config.total_steps=400',
          '--config.checkpoint_every=20',
          '--config.eval_every=0',
          f'--coordinator={coordinator}',
          '--num_processes=2',
          f'--process_id={index}',
        ],
        text=True,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
      )
      for index in range(2)
    ]

  first, second = start(f'localhost:{free_port()}')
  deadline = time.monotonic() + 200
  while not (tmp_path / 'checkpoints/40').exists():
    assert time.monotonic() < deadline
    time.sleep(0.1)
  second.send_signal(signal.SIGKILL)
  killed = time.monotonic()
  output = first.communicate(timeout=processes.HEARTBEAT_TIMEOUT + 30)[0]
  print(
    f'the other stopped {time.monotonic() - killed:.1f} s after the kill, '
    f'with status {first.returncode}:\n{output}'
  )
  assert first.returncode in (processes.EXIT_STATUS, -signal.SIGABRT)
  assert 'another process of this run is gone' in output or (
    'another task died' in output
  )
  outputs = finish(start(f'localhost:{free_port()}'))
  assert 'resuming from step' in outputs[0] and 'after 400 steps' in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  'batches, folders, message',
  [
    (
      (64, 32),
      ('same', 'same'),
      'config.batch is 64 on process 0 and 32 on process 1',
    ),
    ((64, 64), ('one', 'other'), 'workdir=.* process 0 .* process 1.* share'),
  ],
)
def test_all_processes_report_a_difference(tmp_path, batches, folders, message):
  coordinator = f'localhost:{free_port()}'
  started = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'vit_jax.main',
        f'--config={ROOT}/configs/quickstart.py',
        f'--workdir={tmp_path}/{folders[index]}',
        f'--config.batch={batches[index]}',
        f'--coordinator={coordinator}',
        '--num_processes=2',
        f'--process_id={index}',
      ],
      text=True,
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for index in range(2)
  ]
  outputs = [process.communicate(timeout=200)[0] for process in started]
  assert [process.returncode for process in started] == [2, 2], outputs
  for text in outputs:
    assert re.search(message, text), outputs


def test_a_single_process(tmp_path):
  assert processes.exchange({'a': 1}) == [{'a': 1}]
  assert processes.main_first(lambda: 5) == 5
  assert processes.main_only(lambda: 6) == 6
  for call in (processes.main_first, processes.main_only):
    with pytest.raises(ValueError, match='no'):
      call(lambda: int('no'))
  processes.check_same({'a': 1})
  processes.check_shared(tmp_path)
  assert not list(tmp_path.iterdir())
  assert processes.is_main() and processes.name() == ''
