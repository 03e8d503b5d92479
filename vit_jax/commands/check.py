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
  0  no file is in two classes or in two splits
  1  the same file is in two classes or in two splits, or an unexpected error
  2  a wrong argument, or a folder that cannot be used for training
"""

from collections.abc import Sequence
import json
import os

from vit_jax import base_config
from vit_jax.commands import command_line
from vit_jax.commands import errors

_SHOWN_CLASSES = 20
_IMBALANCE = 5  # ratio of the largest class to the smallest one


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
  for name, metavar, text in (
    ('labels', 'TABLE', 'table of labels, or "folders"'),
    ('label_column', 'NAME', 'column of the labels'),
    ('train_split', 'SPLIT', 'sub-folder with training images'),
    ('test_split', 'SPLIT', 'sub-folder with test images'),
    ('task', 'TASK', 'classification, multi_label or regression'),
  ):
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
      from vit_jax.data.folders import folder_source

      tensorflow.load()
    if not os.path.isdir(args.folder):
      raise ValueError(
        f'{args.folder}: no such folder. `check` reads a folder of images. '
        'Check the path'
      )
    config = base_config.for_dataset(args.folder)
    names = ('labels', 'label_column', 'train_split', 'test_split', 'task')
    config.update({x: getattr(args, x) for x in names if getattr(args, x)})
    config.max_bad_images = 1.0  # they are counted, not an error
    listed = folder_source.list_images(
      base_config.data_settings(config), args.folder
    )
    found = findings.find(listed, args.near)
  contradictions = [
    groups
    for of in (found.split_of, found.class_of)
    for groups in found.across(found.equal, of)
  ]
  if args.json:
    print(json.dumps(findings.to_json(found)))
  else:
    for line in _lines(found, args.size):
      print(line)
  return 1 if contradictions else 0


def _lines(found, size):
  """Yields the lines of the page."""
  yield from found.notes
  images = ', '.join(f'{n} {name}' for name, n in found.num_images.items())
  yield f'images: {images}'
  yield from _class_lines(found.counts)
  yield 'kinds of files: ' + ', '.join(
    f'{count} {kind}' for kind, count in found.kinds.items()
  )
  yield from _size_lines(found.sizes, size)
  for reason, paths in found.skipped.items():
    yield f'skipped: {reason}: {_some(paths)}'
  yield from _group_lines(found, found.equal, 'files with the same content')
  if found.near is not None:
    yield from _group_lines(found, found.near, 'pictures that are almost equal')
  if found.majority:
    name, fraction = found.majority
    yield (
      f'always answering {name!r} is right for {100 * fraction:.1f} % of the '
      f'{"test" if "test" in found.counts else "training"} images'
    )


def _class_lines(counts):
  """Yields a table of the images by class and split."""
  if not counts:
    return
  names = sorted(counts['train'], key=counts['train'].get, reverse=True)
  width = max(len(name) for name in ['class', *names[:_SHOWN_CLASSES]])
  yield '  '.join(['class'.ljust(width), *(f'{x:>10}' for x in counts)])
  for name in names[:_SHOWN_CLASSES]:
    numbers = (f'{of[name]:>10}' for of in counts.values())
    yield '  '.join([name.ljust(width), *numbers])
  if len(names) > _SHOWN_CLASSES:
    yield f'… and {len(names) - _SHOWN_CLASSES} classes with fewer images'
  largest, smallest = (counts['train'][names[i]] for i in (0, -1))
  if largest >= _IMBALANCE * smallest:
    yield (
      f'warning: the classes are imbalanced: {largest} training images of '
      f'{names[0]!r}, {smallest} of {names[-1]!r}. See config.class_weights, '
      'config.sampling and the balanced accuracy'
    )
  for split in ('test', 'validation'):
    missing = [x for x, n in counts.get(split, {}).items() if not n]
    if missing:
      yield f'warning: no {split} images of {_some(missing)}'


def _size_lines(sizes, size):
  """Yields lines about the heights and widths [N, 2] of images."""
  if not len(sizes):
    return
  areas = sizes.prod(1)
  order = areas.argsort()
  yield 'height x width: ' + ', '.join(
    '{} {} x {}'.format(word, *sizes[order[i]])
    for word, i in (
      ('smallest', 0),
      ('median', len(order) // 2),
      ('largest', -1),
    )
  )
  small = int((sizes.min(1) < size).sum())
  if small:
    yield f'{small} of {len(sizes)} images have a side below {size} px'


def _group_lines(found, groups, what):
  """Yields lines about groups of equal files or of similar pictures."""
  yield f'{what}: {len(groups)} groups' + (
    f', such as {" = ".join(groups[0][:3])}' if groups else ''
  )
  for of, word in ((found.split_of, 'splits'), (found.class_of, 'classes')):
    across = found.across(groups, of)
    if across:
      paths = ', '.join(f'{x} ({of[x]})' for x in across[0][:3])
      yield (
        f'warning: {len(across)} of these groups are in different {word}, such '
        f'as {paths}. '
        + (
          'The test metrics are then too good. Remove the copies'
          if word == 'splits'
          else 'One of the labels is wrong. Correct it, or remove the files'
        )
      )


def _some(names):
  return f'{len(names)} ({", ".join(names[:3])}{", …" * (len(names) > 3)})'
