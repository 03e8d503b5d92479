"""What the programs share: arguments, quiet loading, leaving with one line."""

import argparse
import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback

from vit_jax import published
from vit_jax import report


def start(main):
  """Runs a program: `main` returns its exit status, or None for 0.

  A program that fails ends at once: threads of libraries, such as Orbax's that
  wait minutes for a folder that nobody makes, do not hold it.
  """
  _open_missing_streams()
  # A name that the terminal's encoding lacks is shown as '\\u0142'.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    status = main()
  except SystemExit as error:
    status = error.code
  if status:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(status)


def _open_missing_streams():
  """Opens /dev/null in place of standard streams that the caller closed.

  Otherwise the next file that is opened, such as a checkpoint, gets the number
  of the stream, and messages of libraries are written into it.
  """
  for number, name, mode in (
      (0, 'stdin', 'r'), (1, 'stdout', 'w'), (2, 'stderr', 'w')):
    try:
      os.fstat(number)
    except OSError:
      nowhere = os.open(os.devnull, os.O_RDWR)
      if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, mode, encoding='utf-8', closefd=False))


def leave(message, status=2):
  """Ends the program with one line on stderr."""
  report.write(f'error: {message}')
  sys.exit(status)


@contextlib.contextmanager
def quiet():
  """Holds back what libraries write to the terminal while they load."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stdout.flush()
  sys.stderr.flush()
  terminal = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
  with tempfile.TemporaryFile() as held:
    for descriptor in terminal:
      os.dup2(held.fileno(), descriptor)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(terminal[2], held.read())
      raise
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      for descriptor, copy in terminal.items():
        os.dup2(copy, descriptor)
        os.close(copy)


@contextlib.contextmanager
def mistakes_leave(memory='', disk='', log_path=None, leave_with=leave):
  """Turns exceptions into one line and an exit status.

  A user's mistake, or a full disk, gives 2; an interruption 130; anything
  else 1, with its trace in the log, or on stderr where there is no log.

  Args:
    memory: what to do where it ran out.
    disk: what to do where it is full.
    log_path: of the log that `report.start_logging` opened.
    leave_with: what ends the program, as `leave` does.
  """
  try:
    yield
  except BrokenPipeError:  # the reader, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError) as error:
    report.log_traceback()
    full = disk and getattr(error, 'errno', None) == errno.ENOSPC
    leave_with(f'{error}: {disk}' if full else error)
  except KeyboardInterrupt:
    report.log_traceback()
    leave_with('interrupted', status=130)
  except MemoryError as error:  # it says what would help
    report.log_traceback()
    leave_with(error, status=1)
  except Exception as error:  # pylint: disable=broad-exception-caught
    report.log_traceback()
    said = f'{type(error).__name__}: ' + str(error).partition('\n')[0]
    if memory and 'RESOURCE_EXHAUSTED' in str(error):
      said += f'. {memory}'
    if log_path:
      said += f' (the trace is in {log_path})'
    else:
      report.write(traceback.format_exc())
    leave_with(said, status=1)


class Parser(argparse.ArgumentParser):
  """Arguments of a program whose module docstring is its help."""

  def __init__(self, name, docstring):
    super().__init__(
        prog=f'python -m {name}', description=docstring, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)

  def error(self, message):
    leave(f'{message}; see {self.prog} --help')


def positive(text):
  """A number of 1 or more, from an argument."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
  return int(text)


def add_model_arguments(parser):
  """The arguments that say what to load, for `load_model`."""
  parser.add_argument(
      'weights', help='the folder of a run, or a file of weights in any '
      'published layout')
  parser.add_argument(
      '--step', type=int, help='of a run: that checkpoint, not the newest')
  parser.add_argument(
      '--model', help='name of the architecture, such as b16, where the '
      'weights do not tell')
  parser.add_argument(
      '--image_size', type=_image_size, metavar='PIXELS or HEIGHTxWIDTH',
      help='of the model\'s images, if not as in training')
  parser.add_argument(
      '--class_names', metavar='FILE', help='names of the classes, one a line, '
      'or a list in JSON such as the class_names.json of a run')
  add_places_arguments(parser)


def add_places_arguments(parser):
  """The arguments that say where published weights are, for `places`."""
  parser.add_argument(
      '--pretrained_dir', default='.', metavar='FOLDER', help='of files of '
      'weights fetched by hand, looked in first (default: this one)')
  parser.add_argument(
      '--weights_sources', metavar='SOURCE,…', help='where published files are '
      'looked for: starts of URLs, or folders, of BUCKET/FOLDER/FILE; '
      'hf:// stands for the copies on the hub (default: '
      + ','.join(published.SOURCES) + ')')


def places(args):
  """Arguments of `weights.find` by those of `add_places_arguments`."""
  sources = published.SOURCES
  if args.weights_sources is not None:
    sources = tuple(filter(None, args.weights_sources.split(',')))
  return {'folder': args.pretrained_dir, 'sources': sources}


def add_prediction_arguments(parser):
  """The arguments that say what to show of predictions."""
  parser.add_argument('--top', type=positive, default=5,
                      help='classes to tell of each image (default: 5)')
  parser.add_argument('--json', action='store_true',
                      help='a JSON object a line, for programs')
  parser.add_argument('--batch', type=positive, default=64,
                      help='images worked on at a time (default: 64)')


def load_model(args):
  """The `TrainedModel` that arguments of `add_model_arguments` name."""
  from vit_jax import description  # pylint: disable=g-import-not-at-top
  from vit_jax import trained_model  # pylint: disable=g-import-not-at-top
  return trained_model.load(
      args.weights, model_name=args.model, image_size=args.image_size,
      step=args.step, **places(args), class_names=args.class_names
      and description.read_class_names(args.class_names))


def _image_size(text):
  size = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not size:
    raise argparse.ArgumentTypeError(
        f'{text!r} is neither a number of pixels nor HEIGHTxWIDTH')
  return int(size[1]), int(size[2] or size[1])
