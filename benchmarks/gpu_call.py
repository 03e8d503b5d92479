"""One call of benchmarks/gpu.py: processes, a time limit, and results.

This module needs only the standard library.
"""

from collections.abc import Callable
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = ROOT / 'benchmarks' / 'gpu_files'  # of `gpu.sh prepare`
_SAVING = 25  # seconds that a training run has to save its state


class OutOfTime(Exception):
  """The next call must continue."""


class Failed(Exception):
  """A process failed."""


@dataclasses.dataclass
class Call:
  """The results of a part, and the time that is left to this call."""

  folder: pathlib.Path
  part: str
  deadline: float  # of `time.monotonic`
  case_seconds: float  # time that must be left when a case starts
  failures: list[str] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    for path in (self.logs, self.path.parent):
      path.mkdir(parents=True, exist_ok=True)
    self.results = {}
    if self.path.exists():
      self.results = json.loads(self.path.read_text(encoding='utf-8'))

  @property
  def logs(self) -> pathlib.Path:
    """The folder for the output of processes."""
    return self.folder / 'logs'

  @property
  def path(self) -> pathlib.Path:
    """The file of the results."""
    return self.folder / 'results' / f'{self.part}.json'

  def keep(self, name: str, result: Any) -> None:
    """Writes a result."""
    self.results[name] = result
    partial = self.path.with_suffix('.partial')
    partial.write_text(
      json.dumps(self.results, indent=2, ensure_ascii=False), encoding='utf-8'
    )
    partial.replace(self.path)

  def measure(self, name: str, function: Callable[[], Any]) -> Any:
    """Returns the result of a case, or None if it failed.

    Args:
      name: name of the case. If it has a result, nothing runs.
      function: returns the result.

    Raises:
      OutOfTime: not enough time is left.
    """
    if name not in self.results:
      if time.monotonic() > self.deadline - self.case_seconds:
        raise OutOfTime
      print(f'{name} …', flush=True)
      try:
        self.keep(name, function())
      except Failed as error:
        self.failures.append(name)
        print(f'{name} failed:\n{error}', flush=True)
    return self.results.get(name)

  def run(
    self,
    log: str,
    *arguments: Any,
    stop: Callable[[], bool] = lambda: False,
    **variables: str,
  ) -> str:
    """Runs Python with these arguments; returns what it printed.

    Args:
      log: name of the log file, to which the output is appended.
      *arguments: arguments of Python.
      stop: returns whether to stop the process, as at the end of the call.
      **variables: variables of the environment. Values of XLA_FLAGS are added
        to those of the environment.

    Raises:
      OutOfTime: the process was stopped.
      Failed: the process failed.
    """
    path = self.logs / f'{log}.log'
    environment = {**os.environ, **variables}
    flags = os.environ.get('XLA_FLAGS', ''), variables.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = ' '.join(flags)
    with open(path, 'ab') as output:
      start = output.tell()
      process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      is_stopped = False
      try:
        while process.poll() is None:
          if time.monotonic() > self.deadline or stop():
            is_stopped = True
            process.terminate()
            process.wait(_SAVING)
          time.sleep(0.1)
      except subprocess.TimeoutExpired:
        pass
      finally:
        if process.poll() is None:
          os.killpg(process.pid, signal.SIGKILL)
      status = process.wait()
    ended = -signal.SIGTERM, 128 + signal.SIGTERM  # of another process
    if status and (is_stopped or status in ended):
      raise OutOfTime
    printed = path.read_bytes()[start:].decode('utf-8', 'replace')
    if status:
      lines = printed.splitlines()[-30:]
      raise Failed('\n'.join([*lines, f'status {status}: see {path}']))
    return printed


def use_wheels(folder: pathlib.Path) -> None:
  """Unpacks the carried packages that this Python does not have.

  A wheel is an archive of modules, so this needs neither pip nor a network.
  """
  site = folder / 'site'
  fits = f'cp{sys.version_info[0]}{sys.version_info[1]}', 'py3', 'py2.py3'
  for wheel in sorted((FILES / 'wheels').glob('*.whl')):
    name, *_, python, _, _ = wheel.stem.split('-')
    try:
      importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      if python in fits:
        print(f'using {wheel.name}')
        with zipfile.ZipFile(wheel) as archive:
          archive.extractall(site)
  os.environ['PYTHONPATH'] = f'{ROOT}{os.pathsep}{site}'
