"""The processes of one run: how they join, exchange values and end.

Messages go over the CPUs, through the coordinator of `jax.distributed`. Waiting
for another process does not occupy an accelerator. In a run of one process, no
function waits.
"""

from collections.abc import Callable
from collections.abc import Mapping
import glob
import importlib.util
import itertools
import json
import os
import re
import socket
import sys
import time
from typing import Any
from typing import NoReturn

import jax

# After this time without a heartbeat, a process counts as dead, and the other
# processes stop. The time is long enough for a machine that swaps or pauses.
HEARTBEAT_TIMEOUT = 60  # seconds
# Exit status after the loss of another process. It requests that all processes
# are started again (EX_TEMPFAIL in sysexits.h, a temporary failure).
EXIT_STATUS = 75
_PATIENCE = 24 * 3600 * 1000  # ms; missing heartbeats end the wait earlier
_LEAVE_SECONDS = 5
_SHARED_SECONDS = 20  # for a file to appear in a network file system

_message = itertools.count()  # messages with equal numbers form one exchange


# --- joining -----------------------------------------------------------------


def _has_tpu():
  """Returns whether this machine has TPU chips that JAX would use."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  return bool(
    importlib.util.find_spec('libtpu')
    and 'tpu' in (platforms or 'tpu')
    and (glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
  )


def detect() -> str | None:
  """Returns the launcher that may have started several processes, or None."""
  # The variable describes a job step (`srun`). Inside `sbatch` without `srun`,
  # there is one process, whatever the size of the job.
  if int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return 'SLURM'
  if int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    return 'Open MPI'
  if _has_tpu():
    return 'Cloud TPU'
  return None


def _tasks_here(name):
  """Returns (index of this process, number of processes) on this machine."""
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
  """Returns the GPU indices of this process: an equal part of the visible ones.

  By default, JAX selects one GPU for each process. This default is wrong if one
  process must use eight GPUs. It also fails if each process can see only one
  GPU: the fourth process would select the fourth GPU.
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
  if count < num_tasks:  # no GPU, or only this process's GPUs
    return list(range(count)) or None
  each = count // num_tasks
  return list(range(index * each, (index + 1) * each))


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  log: Callable[[str], None] = lambda message: None,
) -> bool:
  """Joins the processes of this run; call it before any other use of JAX.

  If `coordinator`, `num_processes` and `process_id` are None, the scheduler
  specifies them. Without a scheduler, the run has one process.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: number of processes of the run; 1 skips the scheduler.
    process_id: index of this process, from 0.
    log: function that shows a message before a step that may take long.

  Returns:
    Whether the run has several processes.

  Raises:
    ValueError: the arguments are incompatible, or joining failed.
  """
  arguments = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  if num_processes == 1:
    return False
  missing = [name for name, value in arguments.items() if value is None]
  if 0 < len(missing) < len(arguments):
    raise ValueError(
      f'{" and ".join(missing)} must be set, too. Each process of a run needs '
      'coordinator=HOST:PORT, num_processes and process_id.'
    )
  local_device_ids = None
  if missing:
    name = detect()
    if name is None:
      return False
    log(f'joining the processes that {name} started')
    local_device_ids = local_gpus(name)
  else:
    if not re.fullmatch(r'.+:\d+', coordinator):
      raise ValueError(f'coordinator={coordinator} must be HOST:PORT.')
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id={process_id} must be from 0 to {num_processes - 1}, '
        f'because num_processes={num_processes}.'
      )
    if process_id == 0:
      _check_free(coordinator)
    name = None
    log(
      f'process {process_id} of {num_processes}: waiting for the other '
      f'processes at {coordinator}'
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
      log(f'no other machines found ({error}): continuing with one process')
      return False
    raise ValueError(
      'this process could not join the other processes of the run: '
      + str(error).partition('\n')[0]
      + '. Check that num_processes processes started within five minutes, '
      'that they can reach the coordinator, and that its port is free.'
    ) from error
  return True


def _check_free(coordinator):
  """Raises ValueError if another program uses the port of the coordinator.

  Otherwise, the library of JAX ends the process with a C++ trace.
  """
  port = int(coordinator.rpartition(':')[2])
  try:
    with socket.socket() as server:
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      server.bind(('', port))
  except (OSError, OverflowError) as error:
    raise ValueError(
      f'coordinator={coordinator}: the port {port} cannot be used '
      f'({getattr(error, "strerror", None) or error}). Another program may use '
      'it: choose another port, in all processes.'
    ) from error


def is_main() -> bool:
  """Returns whether this process writes the files and messages of the run."""
  return jax.process_index() == 0


def name() -> str:
  """Returns 'process 1 of 4', or '' in a run of one process."""
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    return f'process {jax.process_index()} of {jax.process_count()}'
  return ''


# --- exchanging values -------------------------------------------------------


def _client():
  """Returns the coordinator's client, for which JAX has no public interface."""
  from jax._src import distributed

  return distributed.global_state.client


def exchange(value: Any) -> list:
  """Returns the values of all processes, by process index.

  All processes must call this function.

  Args:
    value: value of this process, which JSON must be able to encode.
  """
  if jax.process_count() == 1:
    return [value]
  client = _client()
  number = next(_message)
  key = f'vit_jax/{number}'

  def receive(sender):
    return client.blocking_key_value_get(f'{key}/{sender}', _PATIENCE)

  client.key_value_set(f'{key}/{jax.process_index()}', json.dumps(value))
  if is_main():
    every = [json.loads(receive(i)) for i in range(jax.process_count())]
    # All processes have ended the previous exchange.
    client.key_value_delete(f'vit_jax/{number - 1}/')
    client.key_value_set(f'{key}/all', json.dumps(every))
  return json.loads(receive('all'))


def main_first(function: Callable) -> Any:
  """Calls `function()` in process 0, then in all other processes.

  The other processes can use files from process 0, such as a download or a
  cache.

  Returns:
    The result of this process.

  Raises:
    ValueError: `function` failed on another process. A process on which it
      failed raises the exception of `function`.
  """
  result = None
  for main in (True, False):
    result, error = _attempt(function) if is_main() == main else (result, None)
    _check_well(error, exchange(_text(error)))
  return result


def together(function: Callable) -> Any:
  """Calls `function()` in all processes, and waits for all of them.

  Returns:
    The result of this process.

  Raises:
    ValueError: `function` failed on another process. A process on which it
      failed raises the exception of `function`.
  """
  result, error = _attempt(function)
  try:
    _check_well(error, exchange(_text(error)))
  except Exception as shared:
    shared.is_shared = True
    raise
  return result


def is_shared(error: Exception) -> bool:
  """Returns whether all processes raise an exception at the same place."""
  return jax.process_count() == 1 or getattr(error, 'is_shared', False)


def main_only(function: Callable) -> Any:
  """Calls `function()` in process 0 and returns the result in all processes.

  Process 0 waits until all processes have called `main_only`.

  Args:
    function: function with a result that JSON can encode.

  Raises:
    ValueError: on the other processes, if `function` failed. Process 0 raises
      the exception of `function`.
  """
  exchange(None)
  result, error = _attempt(function) if is_main() else (None, None)
  text, result = exchange([_text(error), result])[0]
  _check_well(error, [text])
  return result


def _attempt(function):
  """Returns (result of `function`, None), or (None, exception) if it failed."""
  try:
    return function(), None
  except Exception as error:
    return None, error


def _text(error):
  return error and (str(error) or type(error).__name__)


def _check_well(error, texts):
  """Raises the exception of this process, or the message of another process."""
  if error:
    raise error
  for process, text in enumerate(texts):
    if text:
      raise ValueError(f'process {process}: {text}')


def check_same(values: Mapping[str, Any]) -> None:
  """Raises ValueError if {name: value} differs between processes."""
  every = exchange(values)
  for process, others in enumerate(every):
    differences = [
      f'{name} is {_short(every[0].get(name))} on process 0 and '
      f'{_short(others.get(name))} on process {process}'
      for name in sorted(every[0].keys() | others.keys())
      if others.get(name) != every[0].get(name)
    ]
    if differences:
      raise ValueError(
        'the processes of this run must agree, but '
        + '; '.join(differences)
        + '. Start all of them with equal settings and files.'
      )


def _short(value):
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:80]}…'


def check_shared(folder: str | os.PathLike) -> None:
  """Raises ValueError if `folder` is not one folder shared by all processes."""
  if jax.process_count() == 1:
    return
  marker = exchange(os.urandom(8).hex())[0]
  path = os.path.join(folder, f'.shared-{marker}')
  if is_main():
    with open(path, 'w', encoding='utf-8'):
      pass
  exchange(None)  # the file exists now
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (seen := os.path.basename(path) in os.listdir(folder)):
    if time.monotonic() > deadline:
      break
    time.sleep(0.2)
  missing = [i for i, seen in enumerate(exchange(seen)) if not seen]
  if is_main():
    os.remove(path)
  if missing:
    raise ValueError(
      f'workdir={folder} is not the same folder on every process: a file that '
      f'process 0 wrote there is not visible to process '
      f'{", ".join(map(str, missing))}. Use a folder that all machines share.'
    )


# --- ending ------------------------------------------------------------------


def lost_another(error: BaseException) -> bool:
  """Returns whether an exception means that another process has died."""
  return bool(name()) and bool(
    re.search(
      r'Gloo|NCCL|Connection (closed|reset)|Socket closed|[Cc]oordination|'
      r'heartbeat|unhealthy',
      str(error),
    )
  )


def leave(status: int) -> NoReturn:
  """Waits a few seconds until all processes call `leave`; ends this process."""
  if not name():
    sys.exit(status)
  try:
    # Process 0 runs the coordinator. It ends last, so that the other processes
    # can write their last messages.
    _client().wait_at_barrier('vit_jax/leave', _LEAVE_SECONDS * 1000)
    time.sleep(0.5 if is_main() else 0)
  except Exception:
    pass  # the other processes continue, or have ended
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)  # sys.exit would wait five minutes for other processes
