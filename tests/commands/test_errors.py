"""Exceptions become one line and an exit status."""

import errno
import os

import pytest

from vit_jax import console
from vit_jax.commands import errors


def ended(capsys, error, **settings):
  """Returns the exit status and the output after `error` is raised."""
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
    (
      full_disk(),
      2,
      'a file, or the output, cannot be written: No space left on device. '
      'Free it',
    ),
    (KeyboardInterrupt(), 130, 'interrupted'),
    (MemoryError('a smaller batch'), 1, 'a smaller batch'),
  ],
)
def test_mistakes_are_one_line(error, status, line, capsys):
  assert ended(capsys, error, disk='Free it') == (status, f'error: {line}\n')


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


def test_another_function_that_exits(capsys):
  found = []

  def exit_with(message, status=2):
    found.append((str(message), status))

  for error in (ValueError('a'), KeyboardInterrupt(), RuntimeError('b')):
    with errors.exit_on_error(exit_with=exit_with):
      raise error
  assert found == [('a', 2), ('interrupted', 130), ('RuntimeError: b', 1)]


FLAGS = {
  'config.batch': '--config.batch',
  'config.mesh': '--config.mesh',
  'config.pp.crop': '--image_size',
  'model_name': '--model',
  'step': '--step',
  'folder': '--pretrained_dir',
}


@pytest.mark.parametrize(
  'message, expected',
  [
    (
      'config.batch=12: use config.batch=16.',
      '--config.batch=12: use --config.batch=16.',
    ),
    (
      '(config.pp.crop=5), config.mesh: 6',
      '(--image_size=5), --config.mesh: 6',
    ),
    (
      'set config.batch. Or config.pp.crop',
      'set --config.batch. Or --image_size',
    ),
    ("model_name='b61' at step=3", "--model='b61' at --step=3"),
    ('folder=a,step=1', '--pretrained_dir=a,--step=1'),
  ],
)
def test_flags_replace_names(message, expected, capsys):
  assert errors.with_flags(message, FLAGS) == expected
  for error, status in ((ValueError(message), 2), (MemoryError(message), 1)):
    assert ended(capsys, error, flags=FLAGS) == (status, f'error: {expected}\n')


@pytest.mark.parametrize(
  'message',
  [
    'config.batch_eval=3, config.pp=1, config.json, config.mesh.data=1',
    '--config.batch=3 --step=3',
    'run/config.batch run/config.json my.config.batch my_config.batch',
    'the model_name is missing at step 3 of the folder',
    'my_step=3 a.step=3 /step=3 x-step=3 https://host/w?step=3&folder=4',
  ],
)
def test_other_names_do_not_change(message):
  assert errors.with_flags(message, FLAGS) == message


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
