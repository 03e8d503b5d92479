"""Draws attention maps, features and filters of a model as pictures.

Examples:
  Draw attention, relevance for the predicted class, and features of a photo:
    python -m vit_jax look workdirs/quickstart photo.jpg --out=figures/
  Draw what speaks for one class, and the attention of the patch at (5, 8):
    python -m vit_jax look imagenet21k+imagenet2012/ViT-B_16 photo.jpg \\
      --figures=relevance,attention --class=lynx --patch=5,8
  Draw the figures of the ViT paper, with the attention of 128 images:
    python -m vit_jax look imagenet21k/ViT-B_16 --images=photos/ \\
      --figures=filters,positions,attention_distance

Figures of each photo:
  rollout             Attention through all blocks.
  attention           Heads of the last block.
  relevance           Patches that speak for a class.
  features            Foreground and its components.
  similarity          Cosines with one patch.
  nearest             Similar files of --images.
Figures of the weights:
  filters             Principal components of the first layer's filters.
  positions           Similarity of the position embeddings.
Figures of the files in --images:
  attention_distance  Mean distance of attention, for each head.
  norms               Norms of the patches, with outliers.
  cka                 Similarity of the outputs of all blocks.

Each figure is a picture, such as OUT/photo_rollout.png. The file OUT/….npz has
its numbers. Without --figures, all figures of the given files are drawn, except
those that the model cannot have. Maps are drawn over the image that the model
sees: cropped and resized as in evaluation. docs/figures.md explains all.

Exit status:
  0    the figures are written
  1    an unexpected error
  2    a wrong argument or file, or a figure that the model cannot have
  130  Ctrl-C interrupted the command
"""

from collections.abc import Sequence
import os
import re
from typing import TYPE_CHECKING

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model
  from vit_jax.figures import catalog

# As in `catalog`, which imports JAX.
_OF_PHOTOS = (
  *('rollout', 'attention', 'relevance', 'features', 'similarity'),
  'nearest',
)
_OF_PARAMETERS = ('filters', 'positions')
_OF_IMAGES = ('attention_distance', 'norms', 'cka')
_NAMES = (*_OF_PHOTOS, *_OF_PARAMETERS, *_OF_IMAGES)


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser(
    'vit_jax look', 'WEIGHTS [PHOTO…] [options]', __doc__
  )
  arguments.add_weights_argument(parser)
  parser.add(
    'Arguments',
    'photos',
    nargs='*',
    default=[],
    metavar='PHOTO',
    help='image file, or folder: all images in it and in its sub-folders',
  )
  parser.add(
    'Figures',
    '--figures',
    names=('figures',),
    metavar='LIST',
    help='names of figures, separated by commas (default: see above)',
  )
  parser.add(
    'Figures',
    '--out',
    names=('out',),
    default='figures',
    type=os.path.expanduser,
    metavar='DIR',
    help='folder of the figures, which is created (default: figures)',
  )
  parser.add(
    'Figures',
    '--images',
    metavar='PATH',
    help='folder of images, for the figures that need many',
  )
  parser.add(
    'Figures',
    '--count',
    type=command_line.positive,
    default=128,
    metavar='N',
    help='images of this folder to use, evenly spaced in the order of their '
    'paths; nearest searches all (default: 128)',
  )
  parser.add(
    'Figures',
    '--class',
    names=('class',),
    dest='class_name',
    metavar='NAME',
    help='class of relevance (default: the predicted class of each photo)',
  )
  parser.add(
    'Figures',
    '--patch',
    names=('patch',),
    metavar='ROW,COL',
    help='patch of attention and similarity, from 0,0 at the upper left '
    '(default: the class token, and the patch in the middle)',
  )
  parser.add(
    'Figures',
    '--renormalize',
    action='store_true',
    help='attention_distance: divide the weights of a patch by their sum over '
    'the patches, so that attention to other tokens does not count',
  )
  parser.add(
    'Figures',
    '--invert',
    action='store_true',
    help='features: exchange foreground and background',
  )
  arguments.add_model_arguments(parser)
  arguments.add_search_arguments(parser)
  return parser


def _names(text: str) -> list[str]:
  names = [name for name in text.split(',') if name]
  for name in names or [text]:
    if name not in _NAMES:
      near = command_line.nearest(name, _NAMES)
      raise ValueError(
        f'--figures={text}: {name!r} is not a figure'
        + (f' (did you mean {near}?)' if near else '')
        + f'. Use some of {", ".join(_NAMES)}.'
      )
  return list(dict.fromkeys(names))


def _patch(text: str) -> tuple[int, int]:
  found = re.fullmatch(r'(\d+),(\d+)', text)
  if not found:
    raise ValueError(
      f'--patch={text} is not ROW,COLUMN, such as 0,3 in the first row.'
    )
  return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
  """Draws figures and returns the exit status."""
  parser = make_parser()
  # Photos may follow options: `WEIGHTS --out=x PHOTO`.
  args = parser.parse_intermixed_args(argv)
  with errors.exit_on_error(
    memory='A smaller --image_size needs less memory.', flags=parser.flags
  ):
    names = _requested(args)
    if args.patch:
      _patch(args.patch)  # an error before long work
    with errors.quiet():
      from vit_jax import figures
      from vit_jax.data import tensorflow
      from vit_jax.inference import classify
      from vit_jax.parallel import numerics

      figures.check_installed()
      tensorflow.preload()
    with numerics.fixed():
      photos = list(classify.find_images(args.photos))
      files = list(classify.find_images([args.images])) if args.images else []
      trained = arguments.load_model(args)
      console.log_info(f'{trained.source}: {trained}')
      options = _options(args, trained)
      names = _possible(names, trained, options, required=bool(args.figures))
      args.out = command_line.make_folder(args.out, '--out')
      _draw(args, trained, options, names, photos, files)
  return 0


def _requested(args) -> list[str]:
  """Returns names of figures; raises ValueError if files are missing."""
  if args.figures is None:
    names = [
      *(_OF_PHOTOS[:-1] if args.photos else ()),
      *(_OF_IMAGES if args.images and not args.photos else ()),
      *(_OF_PHOTOS[-1:] if args.photos and args.images else ()),
      *(() if args.photos else _OF_PARAMETERS),
    ]
  else:
    names = _names(args.figures)
  for name in names:
    if name in _OF_PHOTOS and not args.photos:
      raise ValueError(
        f'--figures={name} needs photos. Use the path of an image after the '
        'weights.'
      )
    if name in (*_OF_IMAGES, 'nearest') and not args.images:
      raise ValueError(
        f'--figures={name} needs many images. Use --images=FOLDER.'
      )
  for given, users, flag in (
    (args.class_name, ('relevance',), '--class'),
    (args.patch, ('attention', 'similarity'), '--patch'),
    (args.renormalize, ('attention_distance',), '--renormalize'),
    (args.invert, ('features',), '--invert'),
    (args.images, (*_OF_IMAGES, 'nearest'), '--images'),
    (args.photos, _OF_PHOTOS, 'The photo'),
  ):
    if given and not set(users) & set(names):
      raise ValueError(
        f'{flag} has no effect on the figures {", ".join(names)}. Only '
        f'{", ".join(users)} can use it.'
      )
  return names


def _options(args, trained: 'trained_model.TrainedModel') -> 'catalog.Options':
  """Returns the options of the figures; raises ValueError for wrong ones."""
  from vit_jax.figures import catalog

  patch = None
  if args.patch:
    patch = _patch(args.patch)
    catalog.check_patch(trained, *patch)
  index = None
  if args.class_name:
    known = {x: i for i, x in enumerate(trained.shown_class_names)}
    if trained.output != 'identity':
      known |= trained.class_index
    index = known.get(args.class_name)
    if index is None:
      near = command_line.nearest(args.class_name, known)
      raise ValueError(
        f'--class={args.class_name} is not a class of {trained.source}, which '
        f'has {trained.model.num_classes}. '
        + (f'Did you mean {near}?' if near else 'Use one of its class names.')
      )
  return catalog.Options(patch, index, args.renormalize, args.invert)


def _possible(names, trained, options, required: bool) -> list[str]:
  """Returns the figures that the model can have, and logs the others.

  Raises:
    ValueError: a figure that is `required`, or every figure, is impossible.
  """
  from vit_jax.figures import catalog

  found, reasons = [], []
  for name in names:
    try:
      catalog.check(trained, name, options)
      found.append(name)
    except ValueError as error:
      if required:
        raise
      reasons.append(error)
  if not found:
    raise reasons[0]
  for reason in reasons:
    console.log_info(f'skipped: {reason}')
  return found


def _draw(args, trained, options, names, photos, files):
  """Draws and writes all figures."""
  from vit_jax.figures import catalog
  from vit_jax.figures import model_figures
  from vit_jax.figures import neighbors
  from vit_jax.figures import photo_figures

  def save(figure, name):
    picture, _ = catalog.save(figure, args.out, name)
    console.log_info(f'{picture}')

  titles = _titles(photos)
  images = neighbors.read(trained, photos) if photos else None
  many = None
  if set(names) & set(_OF_IMAGES):
    many = neighbors.read(trained, _spaced(files, args.count))
  for name in names:
    if name in _OF_PHOTOS:
      figures = (
        neighbors.make(trained, images, photos, files)
        if name == 'nearest'
        else photo_figures.make(trained, name, images, options)
      )
      for figure, title in zip(figures, titles, strict=True):
        save(figure, f'{title}_{name}')
    else:
      save(model_figures.make(trained, name, many, options), name)


def _spaced(files, count: int) -> list[str]:
  """Returns `count` of the files, or all, at equal distances."""
  count = min(count, len(files))
  return [files[i * len(files) // count] for i in range(count)]


def _titles(paths) -> list[str]:
  """Returns a different name for each path: 'dog', 'cat', 'dog_2'."""
  titles = []
  for path in paths:
    stem = os.path.splitext(os.path.basename(path))[0]
    title, number = stem, 1
    while title in titles:
      number += 1
      title = f'{stem}_{number}'
    titles.append(title)
  return titles
