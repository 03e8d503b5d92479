"""Measures accuracy and loss of a trained model over a whole data set.

  python -m vit_jax evaluate workdirs/quickstart
  python -m vit_jax evaluate digits.npz --dataset=digits
  python -m vit_jax evaluate ViT-B_16.npz --dataset=photos/ --split=validation

Weights are the folder of a run, or a file or published name of weights in any
supported format. For a run, the data set, the split and all other settings are
those of the run; arguments replace them. Classes are matched by name.

The result is a line on stderr, and a line in evaluations.jsonl in the folder of
the run, or else in --workdir. With --json it is a JSON object on stdout too.

Exit status: 0; 2 for an error; 143 if SIGTERM stops the evaluation.
"""

from collections.abc import Sequence
import json
import os

from vit_jax import base_config
from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import workdir as workdirs

# The arguments for settings that messages name.
_ARGUMENTS = {
  'batch_eval': '--batch',
  'dataset': '--dataset',
  'model.name': '--model',
  'pp.crop': '--image_size',
  'test_split': '--split',
  'tfds_data_dir': '--tfds_data_dir',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Evaluates what the arguments name; returns the exit status."""
  args = _parser().parse_args(argv)
  with (
    errors.exit_on_error(memory='A smaller --batch needs less memory'),
    arguments.in_place_of_settings(_ARGUMENTS),
  ):
    with errors.quiet():
      from vit_jax.checkpoint import metadata
      from vit_jax.data import tensorflow
      from vit_jax.run import evaluation
      from vit_jax.run import preemption

      tensorflow.load()
    run = _find_run(args)
    stored = metadata.read_config(run) if run else {}
    if not stored and not args.dataset:
      raise ValueError(
        f'nothing next to {args.weights} names a data set to evaluate on: give '
        '--dataset=…, a folder of images or the name of a TFDS data set'
      )
    trained = arguments.load_model(args)
    config = _config_for(args, trained, stored)
    name = os.path.basename(os.path.normpath(args.weights))
    workdir = args.workdir or run or workdirs.default_path(f'evaluate-{name}')
    try:
      result = evaluation.evaluate_only(
        config, workdirs.make(workdir), trained=trained
      )
    except preemption.Preempted:
      console.log_info('stopped by SIGTERM: no result is written')
      return preemption.EXIT_STATUS
    if args.json:
      print(json.dumps(result))
  return 0


def _parser():
  parser = arguments.Parser('vit_jax evaluate', __doc__)
  arguments.add_model_arguments(parser)
  arguments.add_dataset_arguments(parser)
  parser.add_argument(
    '--split',
    help="TFDS split, or sub-folder of the folder (default: the run's or test)",
  )
  arguments.add_batch_argument(parser)
  parser.add_argument(
    '--workdir',
    metavar='FOLDER',
    help='folder of evaluations.jsonl (default: that of the run, or else '
    './workdirs/evaluate-WEIGHTS)',
  )
  parser.add_argument(
    '--json', action='store_true', help='print the result as a JSON object'
  )
  return parser


def _find_run(args):
  """Returns the folder of the run that the weights are of, or None.

  The weights are searched once: `args.weights` becomes their path.
  """
  from vit_jax.checkpoint import trained_model

  args.weights, found = trained_model.locate(
    args.weights, args.step, **arguments.search_settings(args)
  )
  return found.path if trained_model.is_run(found.path) else None


def _config_for(args, trained, stored):
  """Returns the config of `evaluation.evaluate_only`.

  Args:
    args: of the command line.
    trained: the `TrainedModel` to evaluate.
    stored: settings of its run, flat; {} if it is of no run.
  """
  from vit_jax.parallel import sharding

  config = base_config.for_dataset(args.dataset or stored['dataset'])
  preset = config.copy_and_resolve_references()
  known = base_config.flatten(config)
  config.update_from_flattened_dict(
    {'batch_eval': 64}
    | {name: value for name, value in stored.items() if name in known}
  )
  if config.dataset != preset.dataset:
    for name in ('dataset', 'train_split', 'test_split'):
      config[name] = preset[name]
  try:
    sharding.make_mesh(**config.mesh)
  except ValueError:  # the run was trained on other devices
    config.mesh = preset.mesh
  config.pp.crop, config.pp.crop_width = trained.image_size
  given = {
    'batch_eval': args.batch,
    'test_split': args.split,
    'tfds_data_dir': args.tfds_data_dir,
  }
  config.update({name: value for name, value in given.items() if value})
  return config
