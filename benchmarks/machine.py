"""Writes a description of this machine and of its libraries to a JSON file.

python benchmarks/machine.py machine.json
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys

import jax

PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'pillow'),
  *('ml_collections', 'tensorflow', 'torch', 'timm'),
)
_QUERY = 'name,driver_version,memory.total,clocks.max.sm,power.limit'


def version(package):
  """Returns the version of a package, or None if it is not installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def output_of(*command):
  """Returns what a command prints, or None if it fails."""
  try:
    return subprocess.check_output(command, text=True).strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def cpu():
  """Returns the name of the CPU and the number of cores of this machine."""
  name = platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      name = (re.findall(r'model name\s*: (.*)', file.read()) or [name])[0]
  return f'{name}, {len(os.sched_getaffinity(0))} cores'


def main(path):
  """Writes the file."""
  device = jax.devices()[0]
  facts = {
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'backend': device.client.platform_version,
    'nvidia_smi': output_of(
      'nvidia-smi', f'--query-gpu={_QUERY}', '--format=csv'
    ),
    'system': platform.platform(),
    'cpu': cpu(),
    'python': platform.python_version(),
    'packages': {name: version(name) for name in PACKAGES},
    'commit': output_of('git', 'rev-parse', 'HEAD'),
  }
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(facts, file, indent=2)


if __name__ == '__main__':
  main(sys.argv[1])
