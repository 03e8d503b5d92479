"""Arguments that several commands share."""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import re
from typing import Any
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax.checkpoint.pretrained import registry
from vit_jax.commands.output import prediction_file
from vit_jax.commands.parsing import command_line
from vit_jax.commands.parsing import config_arguments
from vit_jax.data import data_settings

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model

# Advice if memory is exhausted.
LESS_MEMORY = 'A smaller --batch needs less memory.'
SMALLER = 'A smaller --batch or --image_size needs less memory.'


def add_weights_argument(parser: command_line.Parser) -> None:
  """Adds the positional argument WEIGHTS."""
  parser.add(
    'Arguments',
    'weights',
    names=('config.pretrained',),
    metavar='WEIGHTS',
    help='run folder, or weights file: path, URL or published name (.npz, '
    '.safetensors)',
  )


def add_model_arguments(parser: command_line.Parser) -> None:
  """Adds the options that `load_model` reads."""
  parser.add(
    'Model',
    '--step',
    names=('step',),
    type=command_line.number,
    metavar='N',
    help='checkpoint step, if WEIGHTS is a run folder (default: the newest)',
  )
  parser.add(
    'Model',
    '--raw',
    names=('raw',),
    action='store_true',
    help='use the parameters of a run in place of their moving average '
    '(config.ema_decay)',
  )
  parser.add(
    'Model',
    '--model',
    names=('model_name', 'config.model.name'),
    metavar='NAME',
    help='architecture: b16, or a name of timm (default: as the weights say)',
  )
  parser.add(
    'Model',
    '--image_size',
    names=('image_size', 'config.pp.crop'),
    type=_image_size,
    metavar='SIZE',
    help="size of the model's images in pixels: 224, or HEIGHTxWIDTH such as "
    '224x320 (default: as in training)',
  )
  add_class_names_argument(parser, '--class_names', names=('class_names',))
  config_arguments.add_model_settings(parser)


def add_class_names_argument(
  parser: command_line.Parser,
  flag: str,
  title: str = 'Model',
  names: Sequence[str] = (),
) -> None:
  """Adds an option for a file of class names; see `Parser.add`."""
  parser.add(
    title,
    flag,
    names=names,
    metavar='FILE',
    help='file of class names: one per line, or a JSON list such as the '
    'class_names.json of a run',
  )


def add_vocabulary_argument(parser: command_line.Parser) -> None:
  """Adds the option for the file of LiT's tokenizer."""
  parser.add(
    'Model',
    '--vocabulary',
    names=('vocabulary',),
    metavar='FILE',
    help='.txt or .model file of the tokenizer of LiT (default: the file next '
    'to the weights, or else the published file)',
  )


def add_search_arguments(parser: command_line.Parser) -> None:
  """Adds the options that `search_settings` reads."""
  title = 'Where weights are searched'
  parser.add(
    title,
    '--pretrained_dir',
    names=('folder', 'pretrained_dir', 'config.pretrained_dir'),
    default='.',
    metavar='DIR',
    help='folder of downloaded weights, searched first (default: the current '
    'folder)',
  )
  parser.add(
    title,
    '--weights_sources',
    names=('sources', 'weights_sources', 'config.weights_sources'),
    type=lambda text: tuple(filter(None, text.split(','))),
    default=registry.SOURCES,
    metavar='LIST',
    help='sources of published weights, separated by commas: URL prefixes or '
    'folders, to which BUCKET/FOLDER/FILE is appended. hf:// is the Hugging '
    'Face Hub (default: ' + ','.join(registry.SOURCES) + ')',
  )


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the arguments `folder` and `sources` of `search.find`."""
  return {'folder': args.pretrained_dir, 'sources': args.weights_sources}


def add_dataset_arguments(
  parser: command_line.Parser, split_flag: str, split_default: str
) -> None:
  """Adds the options that select a dataset and its split.

  Args:
    parser: the parser.
    split_flag: name of the option for the split.
    split_default: description of its default.
  """
  parser.add(
    'Data',
    '--dataset',
    names=('dataset', 'config.dataset'),
    metavar='DATA',
    help='folder with images in SPLIT/CLASS/, name of a TFDS dataset, or '
    "'digits'",
  )
  parser.add(
    'Data',
    split_flag,
    names=('config.test_split',),
    metavar='SPLIT',
    help=f'TFDS split, or name of a sub-folder (default: {split_default})',
  )
  parser.add(
    'Data',
    '--tfds_data_dir',
    names=('tfds_data_dir', 'config.tfds_data_dir'),
    metavar='DIR',
    help='folder of prepared TFDS datasets (default: ~/tensorflow_datasets)',
  )


def add_batch_argument(
  parser: command_line.Parser, default: int | None = 64
) -> None:
  """Adds --batch; if `default` is None, the run's value or 64 is used."""
  described = '64' if default else "the run's, or 64"
  parser.add(
    'Memory',
    '--batch',
    names=('batch', 'config.batch_eval'),
    type=command_line.positive,
    default=default,
    metavar='N',
    help=f'images per batch; fewer need less memory (default: {described})',
  )


def add_prediction_arguments(parser: command_line.Parser) -> None:
  """Adds the output options of commands that print predictions."""
  parser.add(
    'Output',
    '--top',
    names=('top',),
    type=command_line.positive,
    default=5,
    metavar='N',
    help='number of classes to print for each image (default: 5)',
  )
  parser.add(
    'Output',
    '--json',
    action='store_true',
    help='print one line with a JSON object for each image',
  )
  parser.add(
    'Output',
    '--out',
    names=('out',),
    type=_output_file,
    metavar='FILE',
    help='write the predictions to this file: a table (.csv) or JSON lines '
    '(.jsonl)',
  )


def load_model(args: argparse.Namespace) -> 'trained_model.TrainedModel':
  """Loads the model that WEIGHTS and the model options select."""
  from vit_jax.checkpoint import metadata
  from vit_jax.checkpoint import trained_model

  return trained_model.load_model(
    args.weights,
    model_name=args.model,
    overrides=config_arguments.given_model_settings(args),
    image_size=args.image_size,
    step=args.step,
    raw=args.raw,
    class_names=args.class_names and metadata.class_names_in(args.class_names),
    **search_settings(args),
  )


def dataset_config(
  args: argparse.Namespace,
  trained: 'trained_model.TrainedModel',
  stored: Mapping[str, Any],
) -> ConfigDict:
  """Returns the config to evaluate a model on --dataset, or on that of its run.

  Args:
    args: arguments of the command line: dataset, split, tfds_data_dir, batch.
    trained: the model to evaluate.
    stored: settings of its run, flat; {} for a weights file.
  """
  from vit_jax.parallel import sharding

  config = base_config.for_dataset(args.dataset or stored['dataset'])
  preset = config.copy_and_resolve_references()
  known = base_config.flatten(config)
  config.update_from_flattened_dict(
    {'batch_eval': 64}
    | {name: value for name, value in stored.items() if name in known}
  )
  names = ('sampling', 'repeats', 'hyperrule')  # only used in training
  if config.dataset != preset.dataset:
    names += ('dataset', 'train_split', 'test_split', 'validation', 'data_on')
    names += data_settings.OF_FOLDERS
  for name in names:
    config[name] = preset[name]
  if getattr(args, 'evaluators', None) and config.labels == 'none':
    config.labels = preset.labels  # The run ignored labels; evaluators do not.
  try:
    sharding.make_mesh(**config.mesh)
  except ValueError:  # the run was trained on other devices
    config.mesh = preset.mesh
  config.task = trained.task
  config.pp.crop, config.pp.crop_width = trained.image_size
  config.pp.exif, config.pp.background = trained.exif, trained.background
  config.pp.update(dataclasses.asdict(trained.resizing))
  given = {
    'batch_eval': args.batch,
    'test_split': args.split,
    'tfds_data_dir': args.tfds_data_dir,
  }
  config.update({name: value for name, value in given.items() if value})
  return config


def _output_file(path):
  if not path.lower().endswith(prediction_file.SUFFIXES):
    raise argparse.ArgumentTypeError(
      f'{path!r} must end in {" or ".join(prediction_file.SUFFIXES)}'
    )
  folder = os.path.dirname(os.path.expanduser(path)) or '.'
  if not os.path.isdir(folder):
    raise argparse.ArgumentTypeError(
      f'the folder {folder} does not exist. Create it first'
    )
  return os.path.expanduser(path)


def _image_size(text):
  size = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not size:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number of pixels nor HEIGHTxWIDTH'
    )
  return int(size[1]), int(size[2] or size[1])
