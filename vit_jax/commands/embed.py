"""Writes the features of images to a file, and the nearest images.

Examples:
  Write the input of the head for all images of a folder:
    python -m vit_jax embed workdirs/quickstart photos/ --out=features.npz
  Write the mean of the patches of the images in a list, for a data frame:
    python -m vit_jax embed imagenet21k/ViT-B_16 --list=files.txt \\
      --features=mean --out=features.parquet
  Find the ten nearest images of each test image of CIFAR-10:
    python -m vit_jax embed imagenet21k/ViT-B_16 --dataset=cifar10 \\
      --out=cifar10.npz --nearest=10

The file has the names of the images (`file`) and their features (`feature`), in
the same order; of a dataset, also the class numbers (`label`). In Python:
  stored = numpy.load('features.npz')
  stored['file'], stored['feature']  # [N], [N, D]

Images are preprocessed as in evaluation. The features are computed in parts,
which are kept in the folder OUT.parts until the file is complete. If the
command is interrupted, start it again: it continues with the remaining images.
If the weights, the images or the options have changed, it starts again.

With --nearest=K, the table OUT.nearest.csv has a row for each image: its file,
then the K nearest other images with the cosine of the features.

Exit status:
  0    the file is written
  1    some images could not be decoded and are skipped, or an unexpected error
  2    a wrong argument or file, missing data, or a full disk
  130  Ctrl-C interrupted the command
"""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import functools
import os
import shutil
from typing import Any

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line
from vit_jax.files import regular_files

_KINDS = ('head', 'token', 'mean', 'grid')


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser(
    'vit_jax embed', 'WEIGHTS [IMAGE…] --out=FILE [options]', __doc__
  )
  arguments.add_weights_argument(parser)
  parser.add(
    'Arguments',
    'images',
    nargs='*',
    default=[],
    metavar='IMAGE',
    help='image file, or folder: all images in it and in its sub-folders',
  )
  parser.add(
    'Output',
    '--out',
    names=('out',),
    required=True,
    type=os.path.expanduser,
    metavar='FILE',
    help='file to write: .npz, or .parquet, which needs pyarrow',
  )
  parser.add(
    'Output',
    '--features',
    names=('features',),
    choices=_KINDS,
    default='head',
    metavar='KIND',
    help='head (the input of the head), token (the class token), mean (the '
    'mean of the patches) or grid (all patches). All but head are read after '
    'the final norm (default: head)',
  )
  parser.add(
    'Output',
    '--nearest',
    names=('nearest',),
    type=command_line.positive,
    metavar='K',
    help='also write the K nearest images of each image',
  )
  parser.add(
    'Data',
    '--list',
    names=('list',),
    metavar='FILE',
    help='text file with the path of an image or a folder in each line',
  )
  arguments.add_dataset_arguments(parser, '--split', 'test')
  arguments.add_model_arguments(parser)
  arguments.add_batch_argument(parser)
  arguments.add_search_arguments(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Writes features and returns the exit status."""
  parser = make_parser()
  # Images may follow options: `WEIGHTS --out=x.npz IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with errors.exit_on_error(memory=arguments.SMALLER, flags=parser.flags):
    paths = _check(args)
    with errors.quiet():
      from vit_jax.data import tensorflow
      from vit_jax.inference import classify
      from vit_jax.inference import embedding_file
      from vit_jax.parallel import numerics

      tensorflow.preload()
    embedding_file.check(args.out)
    with numerics.fixed():
      paths = list(classify.find_images(paths))
      trained = arguments.load_model(args)
      console.log_info(f'{trained.source}: {trained}')
      bad = _embed(args, trained, paths)
      if args.nearest:
        _write_nearest(args.out, args.nearest)
  return 1 if bad else 0


def _check(args) -> list[str]:
  """Returns the paths to embed; raises ValueError for a wrong argument."""
  paths = list(args.images)
  if args.list:
    regular_files.check(args.list)
    with open(args.list, encoding='utf-8', errors='surrogateescape') as file:
      lines = file.read().splitlines()
    if any('\0' in line for line in lines):
      raise ValueError(
        f'--list={args.list} is not a text file. Use a file with one path per '
        'line.'
      )
    paths += [line for line in map(str.strip, lines) if line]
  if bool(paths) == bool(args.dataset):
    raise ValueError(
      'There are no images. Use image files, folders, --list=… or --dataset=….'
      if not paths
      else '--dataset and image files cannot be combined. Use one of them.'
    )
  folder = os.path.dirname(args.out) or '.'
  if not os.path.isdir(folder):
    raise ValueError(
      f'--out={args.out}: the folder {folder} does not exist. Create it first.'
    )
  if args.nearest and args.features == 'grid':
    raise ValueError(
      '--nearest compares one row of features for each image, which '
      '--features=grid does not have. Use --features=mean.'
    )
  return paths


def _embed(args, trained, paths) -> int:
  """Writes the file; returns the number of images without features."""
  from vit_jax.inference import embedding
  from vit_jax.inference import embedding_file
  from vit_jax.inference import feature_files

  images, names, data_key = (
    _dataset(args, trained) if args.dataset else _files(args, trained, paths)
  )
  if args.nearest and args.nearest >= len(names):
    raise ValueError(
      f'--nearest={args.nearest} needs more than {args.nearest} images, but '
      f'there are {len(names)}. Use a smaller number.'
    )
  key = {**_key_of_model(args, trained), **data_key}
  parts = f'{args.out}.parts'
  stored = embedding_file.origin_of(args.out)
  if stored == key:
    console.log_info(f'{args.out} is complete: nothing is computed')
    return len(names) - len(embedding_file.read(args.out)['file'])
  feature_files.use_folder(parts, key, [embedding.SPLIT])
  done = embedding.count(parts)
  if done:
    console.log_info(f'{done} of {len(names)} images are done')
  try:
    embedding.compute(
      parts, images, len(names), trained, args.features, args.batch
    )
  except KeyboardInterrupt:
    console.log_info(
      f'stopped after {embedding.count(parts)} of {len(names)} images; to '
      'continue, start the same command again'
    )
    raise
  bad = embedding_file.write(args.out, parts, names, key)
  shutil.rmtree(parts)
  _report(args.out, names, bad)
  return len(bad)


def _key_of_model(args, trained) -> dict[str, Any]:
  """Returns what the features depend on, besides the images."""
  import json

  from vit_jax.run.start import initial_weights

  description = trained.description.to_json()
  return json.loads(
    json.dumps(
      {
        'the weights': initial_weights.fingerprint(trained.params),
        'the model': description,
        'the kind of features': args.features,
      }
    )
  )


def _files(args, trained, paths) -> tuple[Callable, Sequence[str], dict]:
  """Returns (first -> images, their names, what they depend on)."""
  from vit_jax.inference import embedding

  return (
    functools.partial(embedding.of_files, trained, paths, batch=args.batch),
    paths,
    {'the images': embedding.describe_paths(paths)},
  )


def _dataset(args, trained) -> tuple[Callable, Sequence[str], dict]:
  """Returns what `_files` returns, for a split of --dataset."""
  from vit_jax.evaluators import features
  from vit_jax.inference import embedding
  from vit_jax.parallel import sharding
  from vit_jax.run import messages
  from vit_jax.run import setup

  config = arguments.dataset_config(args, trained, {})
  data = setup.load_data(config, sharding.make_mesh(), streams=True)
  console.log_info(messages.describe_data(config, data))
  if not data.num_test:
    raise ValueError(
      f'--dataset={args.dataset} has no test split. Use --split=… with the '
      'name of a split.'
    )
  names = data.sources['test'].names
  if names is None:  # examples without files
    names = [f'{config.test_split}/{i}' for i in range(data.num_test)]
  origin = [
    *(config.dataset, config.test_split, data.num_test, data.fingerprint),
    features.describe_files(args.dataset, args.out),
  ]
  return (
    functools.partial(embedding.of_dataset, data, 'test'),
    names,
    {'the images': origin},
  )


def _report(out, names, bad):
  """Logs what was written, and which images could not be decoded."""
  from vit_jax.data.image_files import image_checks

  for i in bad[:10]:
    console.log_info(f'warning: {names[i]}: {image_checks.reason(names[i])}')
  if bad:
    console.log_info(
      f'warning: {len(bad)} of {len(names)} images could not be decoded'
      + (f', {len(bad) - 10} more than are listed' if len(bad) > 10 else '')
    )
  console.log_info(
    f'the features of {len(names) - len(bad)} images are written to {out}'
  )


def _write_nearest(out: str, count: int) -> None:
  """Writes the table of the nearest images."""
  from vit_jax.inference import embedding_file
  from vit_jax.inference import nearest

  stored = embedding_file.read(out)
  if len(stored['file']) < 2:
    raise ValueError(
      f'--nearest={count} compares images, but {out} has the features of '
      f'{len(stored["file"])} image(s). Give more images that can be decoded'
    )
  files, features = stored['file'], nearest.normalized(stored['feature'])
  count = min(count, len(files) - 1)  # some images have no features
  indices, cosines = nearest.nearest(features, features, count, skips_self=True)
  path = f'{out}.nearest.csv'
  with open(
    f'{path}.partial',
    'w',
    encoding='utf-8',
    errors='surrogateescape',
    newline='',
  ) as file:
    writer = csv.writer(file)
    columns = [f'{x}_{k + 1}' for k in range(count) for x in ('file', 'cosine')]
    writer.writerow(['file', *columns])
    for name, row, values in zip(files, indices, cosines, strict=True):
      pairs = zip(files[row], values, strict=True)
      writer.writerow([name, *(x for f, c in pairs for x in (f, f'{c:.6f}'))])
  os.replace(f'{path}.partial', path)
  console.log_info(f'the nearest images are written to {path}')
