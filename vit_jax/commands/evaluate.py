"""Measures the metrics of a model on a dataset.

Examples:
  Evaluate the newest checkpoint of a run on the test split of its dataset:
    python -m vit_jax evaluate workdirs/quickstart
  Evaluate a published model on images in photos/validation/CLASS/:
    python -m vit_jax evaluate imagenet21k+imagenet2012/ViT-B_16 \\
      --dataset=photos/ --split=validation
  Measure the features of any weights, with or without a head:
    python -m vit_jax evaluate imagenet21k/ViT-B_16 --dataset=cifar10 \\
      --with=knn,few_shot,linear_probe

For a run, the dataset, the split and all other settings are those of the run;
options replace them. For a weights file, --dataset is required. The metrics are
those of the task that the model was trained for. The classes of the model and
of the dataset are matched by name.

--with=LIST measures other things. Of the head: classifier (accuracy, top-5 and
calibration) or imagenet (ImageNet-ReaL, V2, A, R, Sketch, ObjectNet). Of the
features, also without a head: knn (votes of the nearest training images),
few_shot (ridge regression on a few images of each class) or linear_probe
(logistic regression). Of LiT: zero_shot (the classes are the texts that fit
best) or retrieval (of images and captions). See docs/evaluation.md.

The result is a line on stderr, and a line in the file evaluations.jsonl in the
run folder or in --workdir. --with and --by_class print tables to stdout, and
--json prints a JSON object instead.

Exit status:
  0    the evaluation is complete
  1    out of memory, or an unexpected error
  2    a wrong argument or file, missing data, or a full disk
  130  Ctrl-C interrupted the command
  143  SIGTERM stopped the evaluation
"""

from collections.abc import Sequence
import json
import os

from vit_jax import base_config
from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line
from vit_jax.commands.parsing import config_arguments


def main(argv: Sequence[str] | None = None) -> int:
  """Evaluates a model and returns the exit status."""
  parser = make_parser()
  args = parser.parse_args(argv)
  with errors.exit_on_error(memory=arguments.SMALLER, flags=parser.flags):
    if args.by_class and args.evaluators:
      raise ValueError(
        '--by_class is not used with --with. Remove one of the two'
      )
    with errors.quiet():
      from vit_jax.data import tensorflow
      from vit_jax.parallel import preemption

      tensorflow.preload()
    try:
      result = _measure_lit(args) if _is_lit(args) else _evaluate(args)
    except preemption.Preempted:
      console.log_info('stopped by SIGTERM; no result was written')
      return preemption.EXIT_STATUS
    if args.json:
      print(json.dumps(result))
    elif args.evaluators:
      _print_measured(result)
    elif args.by_class:
      _print_table(result['classes'])
  return 0


def _evaluate(args):
  """Evaluates a run or weights; returns the result."""
  with errors.quiet():
    from vit_jax.checkpoint import metadata
    from vit_jax.run import evaluation
    from vit_jax.run.start import named_evaluators

  if args.vocabulary:
    raise ValueError(
      f'--vocabulary={args.vocabulary} is only used with LiT, such as LiT-B16B'
    )
  run = _find_run(args)
  stored = metadata.read_config(run) if run else {}
  _check_dataset(args, stored)
  trained = arguments.load_model(args)
  config = arguments.dataset_config(args, trained, stored)
  config_arguments.add_evaluators(args, config)
  workdir = _make_workdir(args, run)
  if args.evaluators:
    return named_evaluators.measure_trained(config, workdir, trained)
  return evaluation.evaluate_only(
    config, workdir, trained=trained, by_class=args.by_class
  )


def _check_dataset(args, stored):
  if not stored and not args.dataset:
    raise ValueError(
      f'The metadata of {args.weights} contains no dataset to evaluate on. '
      'Use --dataset=…, a folder of images or the name of a TFDS dataset.'
    )


def _make_workdir(args, run=None):
  name = os.path.basename(os.path.normpath(args.weights))
  return command_line.make_folder(
    args.workdir or run or command_line.default_workdir(f'evaluate-{name}')
  )


def _is_lit(args):
  """Returns whether the model has an image and a text tower."""
  from vit_jax.models import variants

  try:
    return variants.resolve(args.model or args.weights) in variants.TWO_TOWERS
  except ValueError:  # a path of weights, or a name of another library
    return False


def _measure_lit(args):
  """Measures LiT with the evaluators of --with; returns the result."""
  with errors.quiet():
    from vit_jax.checkpoint import metadata
    from vit_jax.inference import lit_embeddings
    from vit_jax.run.start import lit_evaluators
    from vit_jax.run.start import named_evaluators

  if not args.evaluators:
    raise ValueError(
      f'{args.weights} has a text tower and no head. Use --with=zero_shot, '
      '--with=retrieval or both'
    )
  unused = {'step': args.step, 'raw': args.raw, 'image_size': args.image_size}
  unused |= config_arguments.given_model_settings(args)
  if 'zero_shot' not in args.evaluators:
    unused['class_names'] = args.class_names
  if set(args.evaluators) == {'retrieval'}:  # of a folder and a table
    unused |= {
      'config.test_split': args.split,
      'config.tfds_data_dir': args.tfds_data_dir,
    }
  for name, value in unused.items():
    if value:
      raise ValueError(
        f'{name}={value} is not used for LiT with '
        f'--with={",".join(args.evaluators)}. Remove it'
      )
  _check_dataset(args, {})
  settings = {
    'test_split': args.split,
    'tfds_data_dir': args.tfds_data_dir,
    'batch_eval': args.batch,
  }
  config = lit_evaluators.make_config(
    args.dataset, **{name: x for name, x in settings.items() if x}
  )
  config_arguments.add_evaluators(args, config)
  base_config.validate(config)  # before weights are downloaded
  names = args.class_names and metadata.class_names_in(args.class_names)
  lit = lit_embeddings.load(
    args.model or args.weights,
    args.weights if args.model else None,
    args.vocabulary,
    **arguments.search_settings(args),
  )
  return named_evaluators.measure_lit(
    config, _make_workdir(args), lit, args.weights, names
  )


def _print_measured(result):
  """Prints the metrics of named evaluators, one per line."""
  for name, value in result.items():
    if isinstance(value, float):
      print(f'{name}  {value:.6g}')
  for rows in result['tables'].values():
    print()
    _print_table(rows)


def _print_table(rows):
  """Prints rows with equal keys as columns of equal width."""
  texts = [
    [console.printable(_text(x)) for x in row]
    for row in ([*rows[0]], *(row.values() for row in rows))
  ]
  widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
  for row in texts:
    cells = [x.ljust(w) for x, w in zip(row, widths, strict=True)]
    console.show('  '.join(cells).rstrip())


def _text(value):
  if value is None:
    return '-'
  if not isinstance(value, float):
    return str(value)
  return f'{value:.4f}' if not 0 < abs(value) < 1e-4 else f'{value:.0e}'


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser('vit_jax evaluate', 'WEIGHTS [options]', __doc__)
  arguments.add_weights_argument(parser)
  arguments.add_model_arguments(parser)
  arguments.add_vocabulary_argument(parser)
  arguments.add_dataset_arguments(parser, '--split', "the run's, or test")
  config_arguments.add_evaluator_options(parser)
  arguments.add_batch_argument(parser, default=None)
  parser.add(
    'Output',
    '--workdir',
    names=('workdir',),
    metavar='DIR',
    help='folder of evaluations.jsonl (default: the run folder, or '
    './workdirs/evaluate-WEIGHTS)',
  )
  parser.add(
    'Output',
    '--json',
    action='store_true',
    help='also print the result as a JSON object',
  )
  parser.add(
    'Output',
    '--by_class',
    names=('by_class',),
    action='store_true',
    help='also print the numbers of each class: accuracy, precision and the '
    'most frequent wrong answer (with --json, in the list "classes")',
  )
  arguments.add_search_arguments(parser)
  return parser


def _find_run(args):
  """Returns the run folder of the weights, or None for a weights file.

  The weights are searched only once: `args.weights` becomes their path.
  """
  from vit_jax.checkpoint import trained_model

  args.weights, found = trained_model.locate(
    args.weights, args.step, **arguments.search_settings(args)
  )
  return found.path if trained_model.is_run(found.path) else None
