"""The public interface, which notebooks and other projects call."""

import inspect

import pytest

import vit_jax
from vit_jax import checkpoint
from vit_jax import models
from vit_jax import train
from vit_jax.inference import loaded_model


@pytest.mark.parametrize(
  'function, parameters',
  [
    (vit_jax.load, ['source', 'options']),
    (vit_jax.get_config, ['config_file']),
    (
      vit_jax.train_and_evaluate,
      [
        'config',
        'workdir',
        'data',
        'task',
        'loss_fn',
        'optimizer',
        'evaluators',
        'hooks',
      ],
    ),
    (models.get_model, ['name', 'num_classes', 'overrides']),
    (checkpoint.load, ['path', 'num_heads']),
    (checkpoint.save, ['path', 'params']),
    (
      checkpoint.adapt,
      [
        'loaded',
        'initial',
        'grid',
        'keep_head',
        'source_grid',
        'resize_patches',
      ],
    ),
    (checkpoint.load_model, ['source', 'image_size', 'class_names', 'step']),
    (loaded_model.LoadedModel.logits, ['images']),
    (loaded_model.LoadedModel.features, ['images']),
    (loaded_model.LoadedModel.classify, ['images', 'top']),
  ],
  ids=lambda x: getattr(x, '__name__', ''),
)
def test_parameters_of_public_functions(function, parameters):
  found = list(inspect.signature(function).parameters)
  assert [name for name in found if name in parameters] == parameters


def test_fields_of_public_results():
  assert train.Result._fields == ('state', 'metrics', 'best_step')
  assert isinstance(train.Result.params, property)
  assert issubclass(vit_jax.Stop, Exception)
  for name in ('model', 'params', 'class_names', 'image_size'):
    assert name in loaded_model.LoadedModel.__dataclass_fields__
