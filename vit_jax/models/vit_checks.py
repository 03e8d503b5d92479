"""Checks the settings of a `VisionTransformer`."""

from typing import Any

from vit_jax.models.layers import attention
from vit_jax.models.layers import dropout
from vit_jax.models.layers import encoder
from vit_jax.models.layers import fractal
from vit_jax.models.layers import image_scale
from vit_jax.models.layers import linear
from vit_jax.models.layers import mlp
from vit_jax.models.layers import positions
from vit_jax.models.layers import remat_and_scan
from vit_jax.models.layers import resnet

CLASSIFIERS = (
  *('token', 'gap', 'map', 'probe', 'token_gap', 'unpooled', 'token_unpooled'),
)
_KNOWN = {
  'classifier': CLASSIFIERS,
  'attention': attention.IMPLEMENTATIONS,
  'block': encoder.BLOCKS,
  'norm': tuple(linear.NORMS),
  'stem_epsilons': tuple(resnet.EPSILONS),
}


def check(model: Any) -> None:
  """Raises ValueError if a setting is unknown, or if settings are incompatible.

  Args:
    model: a VisionTransformer.
  """
  _check_numbers(model)
  for name, known in _KNOWN.items():
    if getattr(model, name) not in known:
      raise ValueError(
        f'{name}={getattr(model, name)!r} is not one of {", ".join(known)}.'
      )
  dropout.check_schedule(model.drop_path_schedule)
  mlp.check(model.gelu)
  image_scale.check(model.image_mean, model.image_std)
  remat_and_scan.check(model.remat)
  positions.check(model.positions, model.positions_at, model.hidden_size)
  _check_combinations(model)
  _check_layers(model)


def _check_numbers(model):
  for name in (
    'patch_size',
    'hidden_size',
    'mlp_dim',
    'num_heads',
    'num_layers',
    'head_dim',
    'relative_mlp_dim',
    'representation_size',
    'num_parallel',
    'pool_heads',
    'pool_mlp_dim',
  ):
    value = getattr(model, name)
    if value is not None and value < 1:
      raise ValueError(f'{name}={value} must be 1 or more.')
  if model.num_registers < 0:
    raise ValueError(f'num_registers={model.num_registers} must be 0 or more.')
  for name in (
    'dropout_rate',
    'attention_dropout_rate',
    'drop_path_rate',
    'embedding_dropout_rate',
    'patch_dropout_rate',
  ):
    value = getattr(model, name)
    if value is not None and not 0 <= value < 1:
      raise ValueError(f'{name}={value} must be at least 0 and below 1.')
  if not 0 <= model.global_drop_path_rate <= 1:
    raise ValueError(
      f'global_drop_path_rate={model.global_drop_path_rate} '
      'must be from 0 to 1.'
    )
  if model.embedding_std is not None and model.embedding_std < 0:
    raise ValueError(f'embedding_std={model.embedding_std} must be 0 or more.')
  if model.norm_epsilon <= 0:
    raise ValueError(f'norm_epsilon={model.norm_epsilon} must be above 0.')


def _check_combinations(model):
  if model.head_dim is None and model.hidden_size % model.num_heads:
    raise ValueError(
      f'hidden_size={model.hidden_size} is not a multiple of '
      f'num_heads={model.num_heads}. Change one of them, or set head_dim.'
    )
  if model.class_token is False and model.reads_token:
    raise ValueError(
      f'class_token=False: classifier={model.classifier!r} reads the class '
      "token. Use classifier='gap' or classifier='map'."
    )
  if model.patch_dropout_rate and 'unpooled' in model.classifier:
    raise ValueError(
      f'patch_dropout_rate={model.patch_dropout_rate} removes patches, but '
      f'classifier={model.classifier!r} returns logits for every patch. '
      'Use patch_dropout_rate=0.'
    )
  if model.fractal_columns is not None:
    fractal.check(model.fractal_columns, model.num_layers)
    if model.scan:
      raise ValueError(
        'scan=True needs a plain sequence of layers, but '
        f'fractal_columns={model.fractal_columns} is set. Use scan=False.'
      )
    if model.drop_path_schedule != 'linear':
      raise ValueError(
        f'drop_path_schedule={model.drop_path_schedule!r} needs a sequence of '
        f'blocks, but fractal_columns={model.fractal_columns} is set. Remove '
        'this setting.'
      )
  elif model.global_drop_path_rate:
    raise ValueError(
      f'global_drop_path_rate={model.global_drop_path_rate} needs a model '
      'with several columns. Set fractal_columns.'
    )


def _check_layers(model):
  """Raises ValueError for options of layers that exclude each other."""
  for is_wrong, message in (
    (
      model.distilled and model.classifier != 'token',
      'distilled=True: the head reads the distillation token and the class '
      f"token, but classifier={model.classifier!r}. Use classifier='token'.",
    ),
    (
      model.drop_remainder and model.stem_units is not None,
      'drop_remainder=True does not work with a convolutional stem '
      f'(stem_units={model.stem_units}). Use drop_remainder=False.',
    ),
    (
      model.block == 'parallel'
      and (model.norm_after or model.num_parallel > 1),
      "block='parallel' has one norm, before one attention layer and one MLP. "
      'Use norm_after=False and num_parallel=1.',
    ),
    (
      not model.attention_out
      and model.num_heads * (model.head_dim or 0) not in (0, model.hidden_size),
      'attention_out=False: the outputs of all heads are added to the tokens, '
      f'but num_heads={model.num_heads} times head_dim={model.head_dim} is not '
      f'hidden_size={model.hidden_size}.',
    ),
    (
      not model.key_bias and not model.qkv_bias,
      'key_bias=False has no meaning with qkv_bias=False, which removes all '
      'three biases. Use one of them.',
    ),
    (
      model.qk_norm_bias and (not model.qk_norm or model.norm != 'layer'),
      "qk_norm_bias=True needs qk_norm=True and norm='layer', but "
      f'qk_norm={model.qk_norm} and norm={model.norm!r}.',
    ),
  ):
    if is_wrong:
      raise ValueError(message)
