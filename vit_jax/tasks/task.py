"""The interface between the training loop and a learning task.

Shapes:  B batch (the first axis of all arrays in a batch)
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vit_jax import models
from vit_jax.augment import augmentation
from vit_jax.checkpoint import metadata
from vit_jax.evaluators import means
from vit_jax.evaluators import predictions
from vit_jax.models import input_checks
from vit_jax.models import param_paths
from vit_jax.models import variants
from vit_jax.optim import run_length


@flax.struct.dataclass
class Context:
  """The inputs of a loss, other than parameters and batch.

  Attributes:
    key: random key of this step and micro-batch, for example for dropout. It
      is constant in evaluation.
    step: number of completed updates, int32 [].
    params: for evaluators of a run, its trained parameters, also if the moving
      average is evaluated; else None.
    ema: moving average of the parameters; None without `Task.ema_decay`.
    frozen: the result of `Task.load_frozen`.
    task_state: see `Task.init_task_state`.
    chosen: what the validation split chose for these parameters,
      `means.Evaluation.chosen`, such as thresholds; None without.
    train: whether this is a training step.
  """

  key: jax.Array
  step: jax.Array
  params: Any = None
  ema: Any = None
  frozen: Any = None
  task_state: Any = None
  chosen: Any = None
  train: bool = flax.struct.field(pytree_node=False, default=False)


def model_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns arguments for `models.get_model`, except `num_classes`."""
  return {
    name: value for name, value in config.model.items() if value is not None
  }


def init_on_images(model: nn.Module, head_bias: float = 0.0) -> Callable:
  """Returns `(key, batch_spec) -> params` for a model with image inputs.

  Args:
    model: Flax module.
    head_bias: value of all biases of the head. 0: as the module initializes.
  """

  def init(key, batch_spec):
    image = batch_spec['image']
    zeros = jnp.zeros((1, *image.shape[1:]), image.dtype)
    params = model.init(key, zeros, train=False)['params']
    if head_bias:
      head = params[param_paths.HEAD]
      bias = jnp.full_like(head['bias'], head_bias)
      params = {**params, param_paths.HEAD: {**head, 'bias': bias}}
    return params

  return init


def check_images(batch: Mapping[str, np.ndarray], data: Any) -> None:
  """Raises ValueError unless a batch has float images in [-1, 1].

  Images that vit_jax has prepared are not checked.

  Args:
    batch: a batch of NumPy arrays.
    data: the `input_pipeline.Datasets` of the batch.
  """
  if data.pipeline.prepares:
    return
  if 'image' not in batch:
    raise ValueError(
      f"a batch has no 'image', only {', '.join(batch)}. The task needs images "
      '[B, H, W, C]'
    )
  images = batch['image']
  input_checks.check_images(
    images, data.image_size, 'image', pixel_range=(-1, 1)
  )
  if 0 <= images.min() < images.max():
    raise ValueError(
      f'image has values from {images.min():.4g} to {images.max():.4g}, so '
      'they seem to be in 0…1, but they must be in [-1, 1]. Convert pixels '
      '0…1 with 2 * image - 1'
    )


def label_spec(data: Any, needed: str) -> tuple[tuple[int, ...], np.dtype]:
  """Returns (shape, dtype) of an example's label.

  Args:
    data: an `input_pipeline.Datasets`.
    needed: the labels that the task needs, for the message.

  Raises:
    ValueError: the batches have no labels.
  """
  spec = data.spec()
  if 'label' not in spec:
    raise ValueError(
      f'the batches have only {", ".join(spec)}, but the task needs {needed} '
      'as label. Add them to the data'
    )
  shape, dtype = spec['label']
  return tuple(shape), np.dtype(dtype)


def label_error(shape: tuple[int, ...], dtype: Any, needed: str) -> ValueError:
  """Returns the error for labels that a task cannot use."""
  return ValueError(
    f'the labels have the type {dtype.name} and the shape '
    f'[{", ".join(map(str, ("B", *shape)))}], but the task needs {needed}. '
    'config.task=classification needs class numbers, config.task=multi_label '
    'rows of 0 and 1, and config.task=regression floats. Choose the task of '
    'these labels, or give other labels'
  )


def image_model(
  config: ConfigDict, data: Any, num_outputs: int, **metadata_fields: Any
) -> tuple[nn.Module, metadata.Description]:
  """Returns the model of `config.model` and its metadata for `Task.deployed`.

  Args:
    config: settings from `base_config`.
    data: an `input_pipeline.Datasets`.
    num_outputs: number of outputs of the head.
    **metadata_fields: other fields of `metadata.Description`.
  """
  settings = model_settings(config)
  name = variants.resolve(settings.pop('name'))
  model = models.get_model(name, num_classes=num_outputs, **settings)
  return model, metadata.Description(
    name=name,
    settings=settings,
    image_size=data.image_size,
    task=config.task,
    **metadata_fields,
  )


def apply_to_images(
  model: nn.Module, params: Any, batch: Mapping[str, Any], context: Context
) -> jax.Array:
  """Returns the outputs of a model for a batch, with dropout in training."""
  return model.apply(
    {'params': params},
    batch['image'],
    train=context.train,
    rngs={'dropout': context.key} if context.train else None,
  )


def keep_batch(
  key: jax.Array, batch: Mapping[str, Any], step: jax.Array | int, train: bool
) -> Mapping[str, Any]:
  """Returns the batch unchanged; the default of `Task.transform`."""
  del key, step, train
  return batch


def make_transform(
  config: ConfigDict, data: Any, num_classes: int | None = None
) -> Callable:
  """Returns the `Task.transform` of `config.augment`.

  Args:
    config: settings from `base_config`.
    data: an `input_pipeline.Datasets`.
    num_classes: K, for labels that are class numbers; None if labels cannot be
      mixed.

  Raises:
    ValueError: the settings do not suit the task.
  """
  settings = augmentation.Settings(**config.augment)
  if not settings.is_on:
    return keep_batch
  if settings.mixes and num_classes is None:
    name = 'mixup' if settings.mixup else 'cutmix'
    raise ValueError(
      f'config.augment.{name}={settings.mixup or settings.cutmix} mixes the '
      f'labels of classes, which config.task={config.task} does not have. Use '
      f'config.augment.{name}=0'
    )
  total_steps = None
  if settings.mix_off:
    total_steps = run_length.resolve(config, data.num_train).total_steps
  augment = settings.make(num_classes, total_steps)

  def transform(key, batch, step, train):
    return augment(key, batch, step) if train else batch

  return transform


def mean_metrics(
  task: 'Task', data: Any, mesh: jax.sharding.Mesh
) -> dict[str, Callable]:
  """Returns evaluators of the mean loss and metrics over each split.

  Returns:
    {'test': evaluator}, and 'validation' if there is a validation split.
  """
  return {
    split: means.Means(task, data, split, mesh)
    for split in data.sources
    if split != 'train'
  }


def whole_split_metrics(
  task: 'Task',
  data: Any,
  mesh: jax.sharding.Mesh,
  measure: Callable,
  tables: Callable | None = None,
  choose: Callable | None = None,
) -> dict[str, Callable]:
  """Returns evaluators of means and of metrics of an entire split.

  Args:
    task: the task. Its loss returns `aux` in evaluation: {name: array [B, …]}.
    data: an `input_pipeline.Datasets`.
    mesh: device mesh.
    measure: function of these arrays for all examples -> {metric: value}.
    tables: function of these arrays -> {name: rows}, such as a row for each
      class. The run folder gets the file NAME_SPLIT.csv.
    choose: function of these arrays for the validation split -> {name: value},
      such as thresholds; never called for another split. A name is a field of
      `metadata.Description`, a value is for JSON. `measure` and `tables` of
      all splits get the values of the same step as arguments, if there are any.

  Returns:
    As `mean_metrics`.
  """
  return {
    split: predictions.Predictions(
      task,
      data,
      split,
      mesh,
      measure,
      tables,
      choose=choose if split == 'validation' else None,
    )
    for split in data.sources
    if split != 'train'
  }


def summarize(numbers: Mapping[str, float], num_examples: int) -> str:
  """Returns a text of test metrics: 'loss 0.1234 over 377 test images'."""
  values = [f'{name} {value:.4f}' for name, value in numbers.items()]
  return f'{", ".join(values)} over {num_examples} test images'


@dataclasses.dataclass(frozen=True)
class Task:
  """The model, loss, data preparation and evaluation of a run.

  A function `(config, data) -> Task` makes it: `make` in a file of `tasks/`, or
  a user's function. `data` is an `input_pipeline.Datasets`.

  Attributes:
    model: Flax module, for messages and for `init`.
    loss: (params, batch, Context) -> (loss [B], {name: metric [B]}, aux). The
      mean loss over the batch is minimized. Training metrics are logged as
      `train_NAME`. Evaluation metrics are averaged over the split. `aux` is a
      pytree for `update_task_state`, averaged over micro-batches. In
      evaluation, it is only used by `whole_split_metrics`.
    deployed: metadata of the model that prediction, export and
      `config.pretrained=RUN` use.
    init: (key, batch_spec) -> params. The batch_spec is {name: abstract array
      [B, …]}, the output of `transform`. None: `init_on_images`.
    prepare: (example, seed) -> {name: tensor}. It runs on the host, in tf.data,
      before batching. An example has `image` (encoded or pixels), and `label`
      if the dataset has classes. The seed is int64 [2] and different for each
      example of the run; it is None in evaluation. None:
      `preprocess.make_prepare`.
    check_batch: (batch of NumPy arrays) -> None, or ValueError if the task
      cannot use the batch. It checks the first training batch, and the first
      batch of given evaluation batches, before step 1. None: no check.
    transform: (key, batch, step, train) -> batch, for example augmentation or
      masks. It runs in the compiled step, on the global batch before it is
      split. It may change names and shapes, but not B. In evaluation the key
      is constant, and `mask` [B], which marks real rows, must be kept.
    evaluators: (task, data, mesh) -> {name: evaluator}. An evaluator is a
      function (params, Context) -> `means.Evaluation`. Its metrics are reported
      as `metric_name`. The names 'test' and 'validation' are for the splits.
    main_metric: metric for early stopping and the plot.
    metric_direction: 'max' or 'min', the better direction of main_metric.
    other_metrics: {metric: better direction} of all other metrics, except the
      loss. `config.best_metric` can be one of these. None: there may be others,
      which need `config.best_direction`.
    ema_decay: step -> decay of a moving average of the parameters, for a method
      that needs one. The step counts the update. None: `config.ema_decay`.
    load_frozen: mesh -> pytree of arrays that are not trained, such as a
      teacher's parameters. They are not saved: a resumed run loads them again
      and checks that they are unchanged.
    init_task_state: params -> pytree that is saved with the run.
    update_task_state: (task_state, params, aux, step) -> task_state. It is
      called after each update, with the new parameters and the number of
      completed updates.
    optimizer: an optax transformation that the task needs. It replaces the
      optimizer, the learning rate and the clipping of the config; see
      `optim/minimize.py`. None: the optimizer of the config.
    frozen_until: {path of a parameter: number of first updates that leave it
      unchanged}. The moments of the optimizer follow its gradient all the time.
    find_fault: (step, training metrics as numbers) -> '' or what is wrong with
      the training, such as collapsed features, and what to change. The run
      stops if there is a fault at three logged steps in a row.
    summarize: (test metrics, number of examples) -> text of the last message
      of a run.
  """

  model: nn.Module
  loss: Callable
  deployed: metadata.Description
  init: Callable | None = None
  prepare: Callable | None = None
  check_batch: Callable | None = None
  transform: Callable = keep_batch
  evaluators: Callable = mean_metrics
  main_metric: str = 'loss'
  metric_direction: str = 'min'
  other_metrics: Mapping[str, str] | None = None
  ema_decay: Callable | None = None
  load_frozen: Callable = lambda mesh: None
  init_task_state: Callable = lambda params: None
  update_task_state: Callable = lambda task_state, params, aux, step: task_state
  optimizer: optax.GradientTransformationExtraArgs | None = None
  frozen_until: Mapping[str, int] | None = None
  find_fault: Callable = lambda step, metrics: ''
  summarize: Callable = summarize

  def __post_init__(self):
    if self.metric_direction not in ('max', 'min'):
      raise ValueError(
        f'metric_direction={self.metric_direction!r} is not one of max, min'
      )
    if self.init is None:
      object.__setattr__(self, 'init', init_on_images(self.model))

  def checked_loss(
    self, params: Any, batch: Mapping[str, Any], context: Any
  ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Calls `loss` and checks the shapes of its outputs.

    Raises:
      ValueError: the loss or a metric has another shape than [B], so that its
        mean would be wrong.
    """
    losses, metrics, aux = self.loss(params, batch, context)
    size = len(jax.tree.leaves(batch)[0])
    for name, value in {'the loss': losses, **metrics}.items():
      if jnp.shape(value) != (size,):
        raise ValueError(
          f'{name} has the shape {list(jnp.shape(value))} for {size} examples, '
          f'but a task must return one value per example, [{size}]. Take the '
          'mean over other axes in the loss'
        )
    return losses, metrics, aux

  def checked_transform(
    self,
    key: jax.Array,
    batch: Mapping[str, Any],
    step: jax.Array | int,
    train: bool,
  ) -> Mapping[str, Any]:
    """Calls `transform` and checks that the batch size does not change.

    Raises:
      ValueError: an array of the new batch has another first axis.
    """
    size = len(jax.tree.leaves(batch)[0])
    batch = self.transform(key, batch, step, train)
    for name, x in batch.items():
      if not jnp.ndim(x) or len(x) != size:
        raise ValueError(
          f'transform returns {name!r} with the shape {list(jnp.shape(x))} '
          f'for a batch of {size} examples. The first axis of all arrays must '
          f'stay {size}'
        )
    return batch
