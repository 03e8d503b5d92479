"""The processes of one run: joining them, and what they say to each other.

Messages go through the coordinator of `jax.distributed`, on the processors, so
that waiting for another process costs no accelerator anything. A process alone
is all of its run, and every function here returns at once.
"""

from collections.abc import Callable
from collections.abc import Mapping
import glob
import importlib.util
import itertools
import json
import os
import re
import sys
import time
from typing import Any
from typing import NoReturn

import jax

# A process that was killed says no more; after this long, the others are told,
# and stop. Long enough for a machine that swaps or pauses.
HEARTBEAT_TIMEOUT = 60  # seconds
# How a run ends whose other processes are gone: start all of them again
# (sysexits.h: a failure that need not come again).
EXIT_STATUS = 75
_PATIENCE = 24 * 3600 * 1000  # ms; heartbeats end the wait when another dies
_LEAVE_SECONDS = 5
_SHARED_SECONDS = 20  # for a file to be seen through a network file system

_message = itertools.count()  # the n-th message of each process belong together


# --- joining -----------------------------------------------------------------


def _has_tpu():
  """Whether this machine has TPU chips that JAX would use."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  return bool(
    importlib.util.find_spec('libtpu')
    and 'tpu' in (platforms or 'tpu')
    and (glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
  )


def detect() -> str | None:
  """What started several processes here: a name, or None for nothing."""
  # Of a job step: within `sbatch` alone, before `srun`, there is one process
  # whatever the job has been given.
  if int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return 'SLURM'
  if int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    return 'Open MPI'
  if _has_tpu():
    return 'Cloud TPU'
  return None


def _tasks_here(name):
  """(number, how many there are) of this process on its machine."""
  if name == 'Open MPI':
    return (
      int(os.environ['OMPI_COMM_WORLD_LOCAL_RANK']),
      int(os.environ['OMPI_COMM_WORLD_LOCAL_SIZE']),
    )
  counts = []  # '4(x2),1' is 4, 4, 1
  for part in os.environ['SLURM_STEP_TASKS_PER_NODE'].split(','):
    count, times = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part).groups(default=1)
    counts += [int(count)] * int(times)
  return (
    int(os.environ['SLURM_LOCALID']),
    counts[int(os.environ['SLURM_NODEID'])],
  )


def local_gpus(name: str) -> list[int] | None:
  """Which GPUs are this process's: an equal part of those that it sees.

  JAX by itself would give each process one, also where one process is to drive
  all eight, and ask for the fourth of one where the scheduler shows each
  process its own alone.
  """
  if name == 'Cloud TPU':
    return None
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  count = (
    len(glob.glob('/dev/nvidia[0-9]*'))
    if visible is None
    else len(visible.split(','))
    if visible
    else 0
  )
  index, num_tasks = _tasks_here(name)
  if count < num_tasks:  # none, or only its own
    return list(range(count)) or None
  each = count // num_tasks
  return list(range(index * each, (index + 1) * each))


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  say: Callable[[str], None] = lambda message: None,
) -> bool:
  """Joins the processes of this run; before any other use of JAX.

  Args:
    coordinator: 'host:port' of process 0. None, like the others: as the
      scheduler says; without one, this process is alone.
    num_processes: of the run; 1 looks for no others.
    process_id: this one's number, from 0.
    say: function of a message, for what may take long.

  Returns:
    Whether this is one of several processes.

  Raises:
    ValueError: the three do not go together, or the others did not come.
  """
  given = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  if num_processes == 1:
    return False
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise ValueError(
      f'{" and ".join(missing)} must be given too: each process of a run '
      'needs --coordinator=HOST:PORT, --num_processes and --process_id'
    )
  local_device_ids = None
  if missing:
    name = detect()
    if name is None:
      return False
    say(f'joining the processes that {name} started')
    local_device_ids = local_gpus(name)
  else:
    if not re.fullmatch(r'.+:\d+', coordinator):
      raise ValueError(f'--coordinator={coordinator} must be HOST:PORT')
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'--process_id={process_id} must be from 0 to '
        f'{num_processes - 1}, below --num_processes'
      )
    name = None
    say(
      f'process {process_id} of {num_processes}: waiting for the others at '
      f'{coordinator}'
    )
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      local_device_ids,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
  except Exception as error:
    if name == 'Cloud TPU' and not jax.distributed.is_initialized():
      say(f'no other machines are known here ({error}): going on alone')
      return False
    raise ValueError(
      'the processes of this run could not be joined: '
      + str(error).partition('\n')[0]
      + '. Check that --num_processes of '
      'them were started within five minutes, that each reaches the '
      'coordinator, and that its port is free'
    ) from error
  return True


def is_main() -> bool:
  """Whether this process is the one that writes files and speaks."""
  return jax.process_index() == 0


def name() -> str:
  """'process 1 of 4', or '' for a process alone."""
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    return f'process {jax.process_index()} of {jax.process_count()}'
  return ''


# --- saying things to each other ---------------------------------------------


def _client():
  """The connection to the coordinator, to which JAX has no public way."""
  from jax._src import distributed

  return distributed.global_state.client


def exchange(value: Any) -> list:
  """The `value` of every process, by its number; all must call this.

  Args:
    value: what JSON can hold.
  """
  if jax.process_count() == 1:
    return [value]
  client = _client()
  key = f'vit_jax/{next(_message)}'

  def receive(sender):
    return client.blocking_key_value_get(f'{key}/{sender}', _PATIENCE)

  client.key_value_set(f'{key}/{jax.process_index()}', json.dumps(value))
  if is_main():
    every = [json.loads(receive(i)) for i in range(jax.process_count())]
    client.key_value_set(f'{key}/all', json.dumps(every))
  return json.loads(receive('all'))


def main_first(function: Callable) -> Any:
  """`function()`, called by process 0 and after it by all others.

  So the others find what it left: a download, a cache.

  Raises:
    ValueError: on every process, if `function` failed on any of them.
  """
  result = None
  for main in (True, False):
    result, error = _attempt(function) if is_main() == main else (result, None)
    _check_well(error, exchange(_text(error)))
  return result


def main_only(function: Callable) -> Any:
  """`function()`, called by process 0 once all have come here, told to all.

  Args:
    function: of a result that JSON can hold.

  Raises:
    ValueError: on the others, if `function` failed; process 0 raises what it
      raised.
  """
  exchange(None)
  result, error = _attempt(function) if is_main() else (None, None)
  text, result = exchange([_text(error), result])[0]
  _check_well(error, [text])
  return result


def _attempt(function):
  """(result, None) of `function`, or (None, exception)."""
  try:
    return function(), None
  except Exception as error:
    return None, error


def _text(error):
  return error and (str(error) or type(error).__name__)


def _check_well(error, texts):
  """Raises this process's exception, or what another said of its own."""
  if error:
    raise error
  for process, text in enumerate(texts):
    if text:
      raise ValueError(f'process {process}: {text}')


def check_same(values: Mapping[str, Any]) -> None:
  """Raises a ValueError unless all processes have the same {name: value}."""
  every = exchange(values)
  for process, theirs in enumerate(every):
    differing = [
      f'{name} is {_short(every[0].get(name))} on process 0 and '
      f'{_short(theirs.get(name))} on process {process}'
      for name in sorted(every[0].keys() | theirs.keys())
      if theirs.get(name) != every[0].get(name)
    ]
    if differing:
      raise ValueError(
        'the processes of this run must agree, but ' + '; '.join(differing)
      )


def _short(value):
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:80]}…'


def check_shared(folder: str | os.PathLike) -> None:
  """Raises a ValueError unless all processes see the same `folder`."""
  if jax.process_count() == 1:
    return
  marker = exchange(os.urandom(8).hex())[0]
  path = os.path.join(folder, f'.shared-{marker}')
  if is_main():
    with open(path, 'w', encoding='utf-8'):
      pass
  exchange(None)  # it is there
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (seen := os.path.basename(path) in os.listdir(folder)):
    if time.monotonic() > deadline:
      break
    time.sleep(0.2)
  blind = [i for i, seen in enumerate(exchange(seen)) if not seen]
  if is_main():
    os.remove(path)
  if blind:
    raise ValueError(
      f'--workdir={folder} is not the same folder on every process: what '
      f'process 0 writes there is not seen by process '
      f'{", ".join(map(str, blind))}. Give a folder that all machines share'
    )


# --- ending ------------------------------------------------------------------


def lost_another(error: BaseException) -> bool:
  """Whether an exception means that another process is gone."""
  return bool(name()) and bool(
    re.search(
      r'Gloo|NCCL|Connection (closed|reset)|Socket closed|[Cc]oordination|'
      r'heartbeat|unhealthy',
      str(error),
    )
  )


def leave(status: int) -> NoReturn:
  """Ends this process, after others that end too, but not long after."""
  if not name():
    sys.exit(status)
  try:
    # Process 0 takes the coordinator along, and then the others' last words.
    _client().wait_at_barrier('vit_jax/leave', _LEAVE_SECONDS * 1000)
    time.sleep(0.5 if is_main() else 0)
  except Exception:
    pass  # the others go on, or are gone
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)  # sys.exit would wait five minutes for the others
