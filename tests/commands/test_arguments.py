"""Arguments that several commands share, and messages about mistakes."""

import argparse
import functools

import pytest

from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.pretrained import registry
from vit_jax.commands import arguments
from vit_jax.commands.parsing import command_line


def make_parser():
  parser = command_line.Parser('vit_jax look', 'WEIGHTS [options]', 'Looks.')
  arguments.add_weights_argument(parser)
  arguments.add_model_arguments(parser)
  arguments.add_search_arguments(parser)
  arguments.add_prediction_arguments(parser)
  command_line.add_switch(parser.group('Output'), 'fast', default=False)
  return parser


def error_of(function, capsys):
  with pytest.raises(SystemExit) as ended:
    function()
  shown = capsys.readouterr().err
  assert ended.value.code == 2 and shown.count('\n') == 1
  return shown


@pytest.mark.parametrize(
  'argv, message',
  [
    (['w', '--tip=3'], "unrecognized argument '--tip=3' (did you mean --top?)"),
    (['w', '--xyzzy'], "unrecognized argument '--xyzzy'; see"),
    (['w', '--to=3'], "unrecognized argument '--to=3' (did you mean --top?)"),
    (['w', '--top=0'], "--top: '0' is not an integer of 1 or more"),
    (['w', '--top=x'], "--top: 'x' is not an integer of 1 or more"),
    (['w', '--step=-1'], "--step: '-1' is not an integer of 0 or more"),
    (['w', '--fast=very'], "--fast: 'very' is neither true nor false"),
    (['w', '--image_size=0'], "'0' is neither a number of pixels nor"),
    ([], 'the following arguments are required: WEIGHTS'),
  ],
)
def test_mistakes(argv, message, capsys):
  for parse in (make_parser().parse_args, make_parser().parse_intermixed_args):
    shown = error_of(functools.partial(parse, argv), capsys)
    assert shown.startswith('error: ') and message in shown
    assert shown.endswith('; see python -m vit_jax look --help\n')


@pytest.mark.parametrize(
  'argv, value',
  [
    ([], False),
    (['--fast'], True),
    (['--fast=true'], True),
    (['--fast=False'], False),
    (['--fast', '--nofast'], False),
    (['--nofast', '--fast=1'], True),
  ],
)
def test_switches(argv, value):
  assert make_parser().parse_args(['w', *argv]).fast is value


def test_the_arguments_of_load_model(monkeypatch, tmp_path):
  found = []
  monkeypatch.setattr(
    trained_model,
    'load_model',
    lambda source, **settings: found.append((source, settings)),
  )
  (tmp_path / 'names').write_text('cat\ndog\n')
  for argv in (
    ['w'],
    ['w', '--step=0', '--model=b16', '--image_size=8x12']
    + [f'--class_names={tmp_path}/names', '--weights_sources=/mirror,,hf://']
    + ['--pretrained_dir=here', '--config.model.num_heads=6']
    + ['--config.model.qk_norm=true'],
    ['w', '--image_size=8', '--weights_sources='],
  ):
    arguments.load_model(make_parser().parse_args(argv))
  nothing = dict.fromkeys(('model_name', 'image_size', 'step', 'class_names'))
  nothing |= {'overrides': {}, 'raw': False}
  assert found == [
    ('w', {**nothing, 'folder': '.', 'sources': registry.SOURCES}),
    (
      'w',
      dict(
        model_name='b16',
        overrides={'num_heads': 6, 'qk_norm': True},
        image_size=(8, 12),
        step=0,
        raw=False,
        class_names=('cat', 'dog'),
        folder='here',
        sources=('/mirror', 'hf://'),
      ),
    ),
    ('w', {**nothing, 'image_size': (8, 8), 'folder': '.', 'sources': ()}),
  ]


def test_the_help_page():
  """The options are in groups, and the exit status is at the end."""
  parser = command_line.Parser(
    'x y', '[options]', 'Does it.\n\nMore.\n\nExit status:\n  0  done\n'
  )
  parser.add('Output', '--top', names=('top', 'config.top'), metavar='N')
  parser.add('Input', 'file', names=('path',), metavar='FILE')
  parser.add('Output', '--json', action='store_true')
  lines = [line.split() for line in parser.format_help().splitlines() if line]
  assert lines == [
    ['Usage:', 'python', '-m', 'x', 'y', '[options]'],
    ['Does', 'it.'],
    ['More.'],
    *(['Output:'], ['--top', 'N'], ['--json'], ['Input:'], ['FILE']),
    *(['Exit', 'status:'], ['0', 'done']),
  ]
  assert parser.flags == {'top': '--top', 'config.top': '--top', 'path': 'FILE'}


def test_numbers():
  assert command_line.number('0') == 0 and command_line.positive('12') == 12
  for text in ('', '1.5', '-1', 'x'):
    with pytest.raises(argparse.ArgumentTypeError, match='0 or more'):
      command_line.number(text)
