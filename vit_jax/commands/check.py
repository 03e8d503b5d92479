"""Shows what a folder of images contains, before any training.

Examples:
  Check a folder whose sub-folders are the classes:
    python -m vit_jax check photos/
  Use a table of labels, and search near duplicates, too:
    python -m vit_jax check photos/ --labels=photos/labels.csv --near
  Print everything as JSON:
    python -m vit_jax check photos/ --json

The page has the images by class and split, the kinds and sizes of images, what
is skipped and why, files that are twice in the folder, and the accuracy of
always answering with the most frequent class. Each image is decoded once; later
checks and runs remember good images.

Exit status:
  0    no file is in two splits or has two labels
  1    the same file is in two splits or has two labels, or an unexpected error
  2    a wrong argument, or a folder that cannot be used for training
  130  Ctrl-C interrupted the command
"""

from collections.abc import Sequence
import json
import os

from vit_jax import base_config
from vit_jax import console
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line

# Settings of the data: (name, metavar, help)
_SETTINGS = (
  ('labels', 'TABLE', 'table of labels, or "folders"'),
  ('label_column', 'NAME', 'column of the labels'),
  ('file_column', 'NAME', 'column of the files'),
  ('label_separator', 'TEXT', 'character between classes, or "none"'),
  ('group_by', 'PATTERN', 'regular expression or column: keeps groups whole'),
  ('validation', 'SPLIT', 'sub-folder with validation images, or 0 for none'),
  ('train_split', 'SPLIT', 'sub-folder with training images'),
  ('test_split', 'SPLIT', 'sub-folder with test images'),
  ('task', 'TASK', 'classification, multi_label or regression'),
)


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser('vit_jax check', 'FOLDER [options]', __doc__)
  parser.add(
    'Arguments',
    'folder',
    names=('config.dataset',),
    metavar='FOLDER',
    help='folder of images',
  )
  for name, metavar, text in _SETTINGS:
    parser.add(
      'Data', f'--{name}', names=(f'config.{name}',), metavar=metavar, help=text
    )
  parser.add(
    'Data',
    '--size',
    type=command_line.positive,
    default=224,
    metavar='PIXELS',
    help="the model's image size: smaller images are counted (default: 224)",
  )
  parser.add(
    'Data',
    '--near',
    action='store_true',
    help='also search near duplicates, by a hash of the picture',
  )
  parser.add(
    'Output', '--json', action='store_true', help='print a JSON object'
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the content of a folder and returns the exit status."""
  parser = make_parser()
  args = parser.parse_args(argv)
  with errors.exit_on_error(flags=parser.flags):
    with errors.quiet():
      from vit_jax.data import tensorflow
      from vit_jax.data.folders import findings
      from vit_jax.data.folders import findings_text
      from vit_jax.data.folders import folder_source
      from vit_jax.data.streams import web_dataset

      tensorflow.load()
    shards = web_dataset.find_shards(args.folder)
    if shards:
      raise ValueError(
        f'{args.folder}: a run streams these tar files, but `check` reads a '
        'folder of image files. Extract the files to check them'
      )
    if not os.path.isdir(args.folder):
      raise ValueError(
        f'{args.folder}: no such folder. `check` reads a folder of image '
        'files. Check the path'
      )
    config = base_config.for_dataset(args.folder)
    given = {name: getattr(args, name) for name, *_ in _SETTINGS}
    if given['validation'] == '0':
      given['validation'] = 0
    config.update({name: x for name, x in given.items() if x is not None})
    config.max_bad_images = 1.0  # they are counted, not an error
    listed = folder_source.list_images(
      base_config.data_settings(config), args.folder
    )
    found = findings.find(listed, args.near)
  if args.json:
    print(json.dumps(findings.to_json(found)))
  else:
    for line in findings_text.page(found, args.size):
      console.show(line)
  return 1 if found.contradictions else 0
