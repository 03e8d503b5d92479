"""A task: the seam between the training loop and what is learned.

Shapes:  B batch (the first axis of everything in a batch)
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

from vit_jax.checkpoint import metadata
from vit_jax.evaluators import means


@flax.struct.dataclass
class Context:
  """What a loss may use besides parameters and batch.

  Attributes:
    key: for dropout and other draws; of this step and micro-batch. In
      evaluation it is always the same.
    step: completed updates, int32 [].
    ema: the moving average of the parameters; None without `Task.ema_decay`.
    frozen: what `Task.load_frozen` returned.
    task_state: see `Task.init_task_state`.
    train: whether this is a training step.
  """

  key: jax.Array
  step: jax.Array
  ema: Any = None
  frozen: Any = None
  task_state: Any = None
  train: bool = flax.struct.field(pytree_node=False, default=False)


def model_settings(config: ConfigDict) -> dict[str, Any]:
  """Arguments of `models.get_model` in a config, but for `num_classes`."""
  return {
    name: value for name, value in config.model.items() if value is not None
  }


def init_on_images(model: nn.Module) -> Callable:
  """Returns `(key, batch_spec) -> params` of a model of images."""

  def init(key, batch_spec):
    image = batch_spec['image']
    zeros = jnp.zeros((1, *image.shape[1:]), image.dtype)
    return model.init(key, zeros, train=False)['params']

  return init


def keep_batch(
  key: jax.Array, batch: Mapping[str, Any], step: jax.Array | int, train: bool
) -> Mapping[str, Any]:
  """A `Task.transform` that changes nothing."""
  del key, step, train
  return batch


def mean_metrics(
  task: 'Task', data: Any, mesh: jax.sharding.Mesh
) -> dict[str, Callable]:
  """Evaluators of the mean loss and metrics over each part of the data.

  Returns:
    {'test': evaluator} and, where there is one, {'validation': evaluator}.
  """
  return {
    split: means.Means(task, data, split, mesh)
    for split in data.sources
    if split != 'train'
  }


def summarize(numbers: Mapping[str, float], num_examples: int) -> str:
  """'loss 0.1234 over 377 test images', from the numbers of the test part."""
  found = [f'{name} {value:.4f}' for name, value in numbers.items()]
  return f'{", ".join(found)} over {num_examples} test images'


@dataclasses.dataclass(frozen=True)
class Task:
  """What a run learns.

  A maker `(config, data) -> Task` builds it: `make` in a file of `tasks/`, or a
  user's function. `data` is an `input_pipeline.Datasets`.

  Attributes:
    model: linen module, for messages and for `init`.
    loss: (params, batch, Context) -> (loss [B], {name: metric [B]}, aux). The
      mean over the batch is minimised. Metrics in training are logged as
      `train_NAME`; in evaluation they are numbers of the data set. `aux` is a
      pytree for `update_task_state`, averaged over micro-batches.
    deployed: what prediction, export and `pretrained=RUN` use of the result.
    init: (key, batch_spec) -> params; batch_spec is {name: abstract array
      [B, …]} as `transform` leaves it. None: of a model of images.
    prepare: (example, seed) -> {name: tensor} on the host, in tf.data, before
      batching; example has `image` (encoded or pixels) and, where the data set
      has classes, `label`. seed is None in evaluation, else int64 [2], another
      one for each example of the run. None: `preprocess.make_prepare`.
    transform: (key, batch, step, train) -> batch, in the compiled step, on the
      global batch before it is split: augmentation, masks. It may change names
      and shapes, but not B. In evaluation the key is always the same, and a
      `mask` [B], which marks real rows, has to stay.
    evaluators: (task, data, mesh) -> {name: evaluator}. An evaluator is a
      function (params, Context) -> `means.Evaluation`, whose numbers are
      reported as `metric_name`. The names 'test' and 'validation' are those of
      parts of the data.
    main_metric: the number that early stopping and the plot use.
    metric_direction: 'max' or 'min', which of it is better.
    ema_decay: step -> decay of a moving average of the parameters; None has
      none.
    load_frozen: mesh -> pytree that is used and not trained, such as a
      teacher's parameters. It is not saved: a resumed run loads it again, and
      compares it with what it was.
    init_task_state: params -> pytree that is saved with the run.
    update_task_state: (task_state, params, aux, step) -> task_state, after each
      update, with the new parameters and the number of completed updates.
    summarize: (numbers of the test part, number of examples) -> the text of a
      run's last message.
  """

  model: nn.Module
  loss: Callable
  deployed: metadata.Description
  init: Callable | None = None
  prepare: Callable | None = None
  transform: Callable = keep_batch
  evaluators: Callable = mean_metrics
  main_metric: str = 'loss'
  metric_direction: str = 'min'
  ema_decay: Callable | None = None
  load_frozen: Callable = lambda mesh: None
  init_task_state: Callable = lambda params: None
  update_task_state: Callable = lambda task_state, params, aux, step: task_state
  summarize: Callable = summarize

  def __post_init__(self):
    if self.metric_direction not in ('max', 'min'):
      raise ValueError(
        f'metric_direction {self.metric_direction!r} is neither max nor min'
      )
    if self.init is None:
      object.__setattr__(self, 'init', init_on_images(self.model))

  def checked_loss(
    self, params: Any, batch: Mapping[str, Any], context: Any
  ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """`loss`, if it returns one number for each example.

    Raises:
      ValueError: a shape is another; its mean over the batch would be wrong.
    """
    losses, metrics, aux = self.loss(params, batch, context)
    size = len(jax.tree.leaves(batch)[0])
    for name, value in {'the loss': losses, **metrics}.items():
      if jnp.shape(value) != (size,):
        raise ValueError(
          f'{name} has the shape {list(jnp.shape(value))} for {size} examples: '
          f'a task returns one number for each example, [{size}]. Take the '
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
    """`transform`, if it keeps the size of the batch.

    Raises:
      ValueError: something in the new batch has another first axis.
    """
    size = len(jax.tree.leaves(batch)[0])
    batch = self.transform(key, batch, step, train)
    for name, x in batch.items():
      if not jnp.ndim(x) or len(x) != size:
        raise ValueError(
          f'transform makes {name!r} of shape {list(jnp.shape(x))} from a '
          f'batch of {size}: the first axis of everything in a batch stays'
        )
    return batch
