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
import datetime
import json
import math
import os

import jax

from vit_jax import base_config
from vit_jax import console
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import search
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import workdir as workdirs
from vit_jax.data import input_pipeline
from vit_jax.data import tensorflow
from vit_jax.evaluators import accuracy
from vit_jax.models import architecture
from vit_jax.models import variants
from vit_jax.optim import loss_functions
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import preemption


@numerics.fixed()
def evaluate_only(
  config, workdir, *, trained=None, loss_fn=loss_functions.softmax_cross_entropy
):
  """Accuracy and loss of trained weights over the whole test split.

  A line is added to `workdir`/evaluations.jsonl. A run that the folder holds is
  left as it is.

  Args:
    config: from `base_config`.
    workdir: folder of the run to evaluate, or for the numbers alone.
    trained: the `TrainedModel` to evaluate; None: the one that the config and
      the workdir name.
    loss_fn: (logits, labels) -> loss of each example [B].

  Returns:
    {'accuracy', 'loss', 'count', …}, the line written.

  Raises:
    ValueError: the weights, the settings and the data do not go together.
    preemption.Preempted: SIGTERM came; no number is written.
  """
  base_config.validate(config)
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
  )
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  image_size = input_pipeline.image_size(config)
  trained = trained or _load(config, workdir, image_size)
  console.log_info(f'{trained.source}: {trained}')
  if trained.trained_size != image_size:
    resampled = architecture.has_positions(weights_file.flatten(trained.params))
    console.log_info(
      ('its positions are resampled from' if resampled else 'it was trained on')
      + ' images of {} x {}'.format(*trained.trained_size)
    )

  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      input_pipeline.streaming(config),
      _cache_dir(config, workdir),
      sharding.share_of(mesh, jax.process_index()),
    )
  )
  params = class_mapping.match(
    trained.params,
    trained.class_names,
    data.class_names,
    trained.source,
    config.dataset,
  )
  console.log_info(
    f'{config.dataset}: {data.num_test} test images in '
    f'{len(data.class_names)} classes'
  )
  batches = console.counting(
    preemption.checked(data.test()),
    math.ceil(data.num_test / config.batch_eval),
    'evaluating',
  )
  with preemption.watching():
    numbers = accuracy.evaluate(
      accuracy.make_eval_fn(trained.model, mesh, loss_fn),
      jax.tree.map(sharding.put, params, sharding.by_rules(params, mesh)),
      batches,
      mesh,
      data.num_test,
    )
  row = {
    'weights': trained.source,
    'dataset': config.dataset,
    'split': config.test_split,
    'image_size': image_size,
    **numbers,
    'time': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
  }
  if processes.is_main():
    with open(
      os.path.join(workdir, 'evaluations.jsonl'), 'a', encoding='utf-8'
    ) as file:
      file.write(json.dumps(row) + '\n')
  console.log_info(
    f'{100 * numbers["accuracy"]:.2f} % of {numbers["count"]} test images '
    f'right ({round(numbers["accuracy"] * numbers["count"])}), loss '
    f'{numbers["loss"]:.4f}; written to {workdir}/evaluations.jsonl'
  )
  return row


def _load(config, workdir, image_size):
  """Returns the model that the config names, checked against its settings."""
  overrides = {
    name: value
    for name, value in config.model.items()
    if name != 'name' and value is not None
  }
  return trained_model.load_model(
    processes.main_first(lambda: _source(config, workdir)),
    model_name=config.model.name,
    overrides=overrides,
    image_size=image_size,
  )


def _source(config, workdir):
  """What to evaluate: the run in the workdir, unless other weights are named.

  The weights that the run itself began with are not other weights, so that its
  own command with `--config.eval_only=True` evaluates what it has trained.
  """
  if trained_model.is_run(workdir):
    stored = metadata.read_config(workdir)
    if config.pretrained in ('model', 'scratch', stored.get('pretrained')):
      return workdir
  if config.pretrained == 'scratch':
    raise ValueError(
      f'there is nothing to evaluate: {workdir} holds no checkpoint, and '
      "config.pretrained is 'scratch'. Give the --workdir of a run, or "
      'weights with --config.pretrained=…'
    )
  return search.find(
    config.pretrained,
    config.pretrained_dir,
    model_name=variants.resolve(config.model.name),
    sources=config.weights_sources,
  )


def _cache_dir(config, workdir):
  """`workdir`, but not where the run in it keeps notes on another data set."""
  stored = metadata.read_config(workdir).get('dataset', config.dataset)
  return workdir if stored == config.dataset else None


# --- the command -------------------------------------------------------------

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
      result = evaluate_only(config, workdirs.make(workdir), trained=trained)
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
  args.weights, found = trained_model.locate(
    args.weights, args.step, **arguments.search_settings(args)
  )
  return found.path if trained_model.is_run(found.path) else None


def _config_for(args, trained, stored):
  """Returns the config of an evaluation.

  Args:
    args: of the command line.
    trained: the `TrainedModel` to evaluate.
    stored: settings of its run, flat; {} if it is of no run.
  """
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
