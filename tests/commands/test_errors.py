"""Exceptions become one line and an exit status."""

import errno
import os

import pytest

from vit_jax import console
from vit_jax.commands import errors


def ended(capsys, error, **settings):
  """(exit status, what is printed) where `error` is raised."""
  with pytest.raises(SystemExit) as left:
    with errors.exit_on_error(**settings):
      raise error
  return left.value.code, capsys.readouterr().err


def full_disk():
  return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
  'error, status, line',
  [
    (ValueError('no such class'), 2, 'no such class'),
    (FileNotFoundError(2, 'No such file', 'a.npz'), 2, 'a.npz: No such file'),
    (OSError('not reached'), 2, 'not reached'),
    (full_disk(), 2, '[Errno 28] No space left on device: free some'),
    (KeyboardInterrupt(), 130, 'interrupted'),
    (MemoryError('a smaller batch'), 1, 'a smaller batch'),
  ],
)
def test_mistakes_are_one_line(error, status, line, capsys):
  assert ended(capsys, error, disk='free some') == (status, f'error: {line}\n')


def test_other_errors_have_a_traceback(capsys, tmp_path):
  error = KeyError('x')
  status, shown = ended(capsys, error)
  assert status == 1 and 'Traceback' in shown
  assert shown.endswith("error: KeyError: 'x'\n")
  assert ended(capsys, error, log_path='run/log.txt') == (
    1,
    "error: KeyError: 'x' (the traceback is in run/log.txt)\n",
  )


def test_advice_for_memory(capsys):
  for text, advice in (
    ('RESOURCE_EXHAUSTED: Out of memory\nmore', '. Use less'),
    ('INTERNAL: x', ''),
  ):
    _, shown = ended(capsys, RuntimeError(text), memory='Use less')
    first = text.partition('\n')[0]
    assert shown.endswith(f'error: RuntimeError: {first}{advice}\n')


def test_another_way_to_end(capsys):
  found = []

  def exit_with(message, status=2):
    found.append((str(message), status))

  for error in (ValueError('a'), KeyboardInterrupt(), RuntimeError('b')):
    with errors.exit_on_error(exit_with=exit_with):
      raise error
  assert found == [('a', 2), ('interrupted', 130), ('RuntimeError: b', 1)]


def test_nothing_happens_without_an_error(capsys):
  with errors.exit_on_error():
    pass
  with pytest.raises(SystemExit) as left:
    with errors.exit_on_error():
      raise SystemExit(3)
  assert left.value.code == 3 and not capsys.readouterr().err


def test_what_libraries_print_is_shown_if_loading_fails(capfd):
  with errors.quiet():
    os.write(2, b'a banner')
    os.write(1, b'another')
  assert capfd.readouterr() == ('', '')
  with pytest.raises(ImportError):
    with errors.quiet():
      os.write(2, b'the reason')
      raise ImportError
  assert capfd.readouterr().err == 'the reason'
  console.write('visible')
  assert capfd.readouterr().err == 'visible\n'
