"""Removes the messages of libjpeg from the error output of a command.

TensorFlow decodes JPEG files with libjpeg, which writes its remarks about
slightly damaged files directly to stderr, such as "Corrupt JPEG data: 2
extraneous bytes before marker 0xd9". The lines name no file, and they come back
in every epoch. The check of all images names the files that cannot be decoded.
"""

import os
import subprocess
import sys

_STARTS = (
  'Corrupt JPEG data',
  'Premature end of JPEG file',
  'Unsupported marker type',
  'Invalid SOS parameters',
  'Inconsistent progression sequence',
  'Unknown Adobe color transform',
  'Warning: unknown JFIF revision',
  'Not a JPEG file',
)
# A process of its own passes on the last lines of a process that crashes.
_FILTER = f"""
import os, sys
starts = {tuple(text.encode() for text in _STARTS)}
for line in sys.stdin.buffer:
  if not line.startswith(starts):
    os.write(2, line)
"""


def hide() -> None:
  """Passes the lines that libraries write to stderr through a filter.

  Messages of Python, which use `sys.stderr`, are written directly. Only a
  command may call this, because it changes the stderr of the whole process.
  """
  direct = os.dup(2)
  child = subprocess.Popen(
    [sys.executable, '-I', '-S', '-c', _FILTER],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    start_new_session=True,  # Ctrl-C must not end it before this process
  )
  os.dup2(child.stdin.fileno(), 2)
  child.stdin.close()
  child.returncode = 0  # nobody waits for it: it ends with this process
  sys.stderr = open(  # noqa: SIM115 (it stays open until the process ends)
    direct,
    'w',
    buffering=1,
    encoding=sys.stderr.encoding,
    errors=sys.stderr.errors,
  )
