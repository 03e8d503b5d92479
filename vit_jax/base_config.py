"""Every setting of a run, with its default; and presets for data sets.

An experiment file starts from `get_config()` and sets what differs. Any
setting can be given on the command line: `--config.pp.crop=224`. Folders and
files are relative to where the command is run.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict
from ml_collections import ConfigDict

from vit_jax.checkpoint.pretrained import registry
from vit_jax.data.data_settings import DataSettings

# The fine-tuning settings of the ViT paper's code for each data set.
DATASETS = {
  'cifar10': dict(train_split='train[:98%]', total_steps=10_000),
  'cifar100': dict(train_split='train[:98%]', total_steps=10_000),
  'imagenet2012': dict(
    train_split='train[:99%]', test_split='validation', total_steps=20_000
  ),
}
# Any other: the short schedule of AugReg (arXiv 2106.10270, appendix).
OTHER_DATASET = dict(total_steps=500, warmup_steps=100, checkpoint_every=100)


def get_config() -> ConfigDict:
  """All settings: fine-tuning as in the ViT paper, section 4.1."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of parameters, data order, augmentation, dropout; < 2**32
  config.task = 'classification'  # what is learned: a file in vit_jax/tasks/
  config.eval_only = False  # train nothing, evaluate the workdir's run or, of
  # other weights, those that `pretrained` names: a file or the folder of a run

  # --- model. None leaves a value as the named model has it.
  config.model = model = ml_collections.ConfigDict()
  model.name = 'ViT-B_16'  # see vit_jax/models/variants.py; short: b16
  model.patch_size = config_dict.placeholder(int)  # pixels
  model.hidden_size = config_dict.placeholder(int)  # width of a token
  model.mlp_dim = config_dict.placeholder(int)  # width inside an MLP block
  model.tokens_mlp_dim = config_dict.placeholder(int)  # the same, over tokens
  model.num_heads = config_dict.placeholder(int)  # divides hidden_size
  model.head_dim = config_dict.placeholder(int)  # None: hidden_size / num_heads
  model.num_layers = config_dict.placeholder(int)  # encoder blocks
  model.classifier = config_dict.placeholder(str)  # token, gap, map
  model.class_token = config_dict.placeholder(bool)  # None: if classifier=token
  model.num_registers = config_dict.placeholder(int)  # tokens for scratch
  model.positions = config_dict.placeholder(str)  # see models/positions.py
  model.positions_at = config_dict.placeholder(str)  # see the same file
  model.representation_size = config_dict.placeholder(int)  # None: no layer
  model.qk_norm = config_dict.placeholder(bool)  # norms of queries and keys
  model.layer_scale = config_dict.placeholder(float)  # initial; None: no scale
  model.gelu = config_dict.placeholder(str)  # tanh, exact
  model.norm_epsilon = config_dict.placeholder(float)  # beside the variance
  model.dropout_rate = config_dict.placeholder(float)  # share, in training
  model.attention_dropout_rate = config_dict.placeholder(float)  # same unit
  model.embedding_dropout_rate = config_dict.placeholder(float)  # same unit
  model.patch_dropout_rate = config_dict.placeholder(float)  # share of patches
  model.drop_path_rate = config_dict.placeholder(float)  # of the last block
  model.fractal_columns = config_dict.placeholder(int)  # see models/fractal.py
  model.global_drop_path_rate = config_dict.placeholder(float)  # of a fractal
  model.attention = config_dict.placeholder(str)  # auto, plain, fused (GPU)
  model.remat = config_dict.placeholder(str)  # none, dots, dense, full
  model.scan = config_dict.placeholder(bool)  # compile one layer for all
  model.dtype = 'float32'  # of activations: float32, bfloat16

  # --- weights to begin with: 'model' are the published ones of model.name,
  # 'scratch' is random; else a path, a URL (https://, gs://, hf://), or a
  # published name such as R_Ti_16 or sam/ViT-B_16: see README.
  config.pretrained = 'model'  # a path, a URL or a name
  config.pretrained_dir = '.'  # of files fetched by hand, looked in first
  # Where published files are looked for, in order: starts of URLs, or folders,
  # of BUCKET/FOLDER/FILE; 'hf://' stands for the copies on the hub.
  config.weights_sources = registry.SOURCES  # a tuple of texts
  config.pretrained_head = 'fresh'  # 'keep': the file's, of the same classes

  # --- data
  config.dataset = 'cifar10'  # 'digits', else a folder, else a TFDS name
  config.train_split = 'train'  # TFDS split, or sub-folder of a folder
  config.test_split = 'test'  # TFDS split, or sub-folder of a folder
  # Training images set apart, for the choice of settings: a fraction below 1, a
  # number, or the name of a split or sub-folder; '': none. With it the best
  # checkpoint, `patience` and the curve are by these, and the test split is
  # read once, at the end.
  config.validation = config_dict.FieldReference(  # '', number or name
    '', field_type=object
  )
  config.tfds_data_dir = ''  # of prepared TFDS sets; '': ~/tensorflow_datasets
  config.in_memory_bytes = 4 * 2**30  # larger TFDS splits are streamed
  config.shuffle_buffer = 50_000  # examples; of streamed sets
  config.max_bad_images = 0.05  # share of undecodable images tolerated
  config.batch = 512  # examples a step, over all devices
  config.batch_eval = 512  # examples a step in evaluation, over all devices

  # --- preprocessing
  config.pp = pp = ml_collections.ConfigDict()
  pp.crop = 384  # height of the model's images, pixels
  pp.crop_width = 0  # pixels; 0: square
  pp.min_area = 0.05  # least share of the area in a random crop; 1: no crop
  pp.flip = True  # half of the training images left to right

  # --- schedule
  config.total_steps = 0  # updates; this or total_epochs must be set
  config.total_epochs = 0.0  # in place of total_steps, if greater than 0
  config.accum_steps = config_dict.FieldReference(  # micro-batches in a batch:
    8, field_type=object
  )  # less memory. auto: as few as the memory allows
  config.base_lr = 0.03  # learning rate after warm-up
  config.decay_type = 'cosine'  # cosine (to 0), linear (to linear_end),
  # constant, rsqrt
  config.rsqrt_timescale = 10_000  # updates; of rsqrt
  config.cooldown_steps = 0  # of constant, rsqrt: last updates, falling to 0
  config.linear_end = 1e-5  # learning rate at the end of a linear decay
  config.warmup_steps = 500  # updates with a rising rate; below total_steps

  # --- optimizer
  config.optimizer = 'sgd'  # sgd, adam, adamw
  config.momentum = 0.9  # of sgd
  config.adam_b1 = 0.9  # decay of adam's first moment
  config.adam_b2 = 0.999  # and of its second
  config.momentum_dtype = 'bfloat16'  # of sgd's momentum, adam's first moment;
  # a decay above 0.9 needs float32
  config.weight_decay = 0.0  # decoupled, of kernels; adamw
  config.grad_norm_clip = 1.0  # global norm; 0: no clip
  config.skip_nonfinite = 0  # updates in a row left out if not finite; 0: stop

  # --- devices: parts of the mesh, multiplying to their number; one may be -1,
  # the rest. Losses do not depend on it, and a run may go on on another one.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # parts of a batch, each with all parameters
  mesh.fsdp = 1  # parts of a batch that share out the parameters: less memory
  mesh.tensor = 1  # parts of each layer: its attention heads, its MLP columns

  # --- cadence, in steps; 0: never. The last step always does all three.
  config.log_every = 10  # loss, learning rate, images a second
  config.eval_every = 100  # accuracy and loss over the test split
  config.checkpoint_every = 1000  # to go on from after an interruption
  config.keep = 2  # newest checkpoints kept
  config.best_metric = ''  # the best by it is kept too: accuracy_test, …
  config.best_direction = ''  # max, min; '': min of loss_…, max of the rest
  config.patience = 0  # evaluations without a better one, then stop; 0: never.
  # By best_metric, or else by the task's own number

  # --- the program
  config.compilation_cache_dir = ''  # '': ~/.cache/vit_jax/compiled; off
  return config.lock()


def for_dataset(dataset: str) -> ConfigDict:
  """`get_config()` with the preset of a data set; others get a short run."""
  config = get_config()
  config.dataset = dataset
  config.update(DATASETS.get(dataset, OTHER_DATASET))
  return config


def image_size(config: ConfigDict) -> tuple[int, int]:
  """(height, width) of the model's images in pixels."""
  return config.pp.crop, config.pp.crop_width or config.pp.crop


def data_settings(config: ConfigDict, **changes: Any) -> DataSettings:
  """The `DataSettings` of a config.

  Args:
    config: from `get_config`.
    **changes: in place of the config's own, such as `in_memory_bytes=0`.
  """
  names = (
    *('dataset', 'train_split', 'test_split', 'validation', 'tfds_data_dir'),
    *('in_memory_bytes', 'shuffle_buffer', 'max_bad_images'),
    *('batch', 'batch_eval', 'seed'),
  )
  return DataSettings(
    **{
      **{name: config[name] for name in names},
      'image_size': image_size(config),
      'min_area': config.pp.min_area,
      'flip': config.pp.flip,
      **changes,
    }
  )


def validate(config: ConfigDict) -> None:
  """Raises a ValueError for the first setting that cannot work."""
  positive = (
    'batch',
    'batch_eval',
    'base_lr',
    'rsqrt_timescale',
    'shuffle_buffer',
    'keep',
    'pp.crop',
    'pp.min_area',
  )
  at_least_0 = (
    'seed',
    'warmup_steps',
    'log_every',
    'eval_every',
    'checkpoint_every',
    'grad_norm_clip',
    'skip_nonfinite',
    'weight_decay',
    'linear_end',
    'cooldown_steps',
    'patience',
    'total_epochs',
    'total_steps',
    'in_memory_bytes',
    'pp.crop_width',
  )
  share = ('pp.min_area', 'max_bad_images')
  below_1 = ('momentum', 'adam_b1', 'adam_b2')
  flat = flatten(config)
  for names, holds, wish in (
    (positive, lambda x: x > 0, 'greater than 0'),
    (at_least_0, lambda x: x >= 0, 'at least 0'),
    (
      ('seed',),
      lambda x: x < 2**32,
      f'less than {2**32}: the initial '
      'parameters and the data order use 32 bits of it',
    ),
    (share, lambda x: 0 <= x <= 1, 'from 0 to 1'),
    (below_1, lambda x: 0 <= x < 1, 'from 0 to below 1'),
  ):
    for name in names:
      if not holds(flat[name]):
        raise ValueError(f'config.{name}={flat[name]} must be {wish}')
  if not config.total_steps and not config.total_epochs:
    raise ValueError(
      'config.total_steps=0 must be greater than 0; or give total_epochs'
    )
  if config.accum_steps != 'auto' and not (
    isinstance(config.accum_steps, int) and config.accum_steps > 0
  ):
    raise ValueError(
      f'config.accum_steps={config.accum_steps!r} must be a '
      "number greater than 0, or 'auto'"
    )
  for name in config.mesh:
    if flat[f'mesh.{name}'] < 1 and flat[f'mesh.{name}'] != -1:
      raise ValueError(
        f'config.mesh.{name}={flat[f"mesh.{name}"]} must be 1 '
        'or more, or -1 for the rest'
      )
  if list(config.mesh.values()).count(-1) > 1:
    raise ValueError(
      f'config.mesh: only one of {", ".join(config.mesh)} may be -1, the rest'
    )
  for name in ('model.dtype', 'momentum_dtype'):
    if flat[name] not in ('float32', 'bfloat16'):
      raise ValueError(
        f'config.{name}={flat[name]!r} is not one of float32, bfloat16'
      )
  if flat['pretrained_head'] not in ('fresh', 'keep'):
    raise ValueError(
      f'config.pretrained_head={flat["pretrained_head"]!r} is '
      'not one of fresh, keep'
    )
  if flat['best_direction'] not in ('', 'max', 'min'):
    raise ValueError(
      f'config.best_direction={flat["best_direction"]!r} is not one of max, min'
    )
  if flat['patience'] and not flat['eval_every']:
    raise ValueError(
      f'config.patience={flat["patience"]} counts evaluations, and there are '
      'none before the last step: set config.eval_every'
    )
  validation = flat['validation']
  if not isinstance(validation, str | int | float) or (
    not isinstance(validation, str) and validation < 0
  ):
    raise ValueError(
      f'config.validation={validation!r} must be a fraction below 1, a number '
      'of training images, or the name of a split'
    )


def flatten(config: ConfigDict) -> dict[str, Any]:
  """{'pp.crop': 384, …} of all settings."""
  flat = {}
  for name, value in config.items(preserve_field_references=False):
    if isinstance(value, ml_collections.ConfigDict):
      flat.update({f'{name}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat
