"""Accuracy of ImageNet classifiers on other test sets of ImageNet.

- real: ImageNet-ReaL (arXiv 2006.07159). An image can have several labels, and
  an answer is right if it is one of them. Images without labels do not count.
- v2 (arXiv 1902.10811), sketch (arXiv 1905.13549): 1000 classes.
- a (arXiv 1907.07174), r (arXiv 2006.16241): 200 classes. Only these compete.
- objectnet: a file says which classes of ImageNet each of its classes has.

Shapes:  B batch · N images of a split · C classes of the dataset
         K classes of the model
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import class_mapping
from vit_jax.data import class_names as published
from vit_jax.evaluators import means
from vit_jax.evaluators import predictions
from vit_jax.files import json_files

# {variant: number of classes of the dataset}; None: any number.
_NUM_CLASSES = {
  'real': None,
  'v2': 1000,
  'a': 200,
  'r': 200,
  'sketch': 1000,
  'objectnet': None,
}


def allowed_classes(
  variant: str,
  labels: str,
  names: tuple[str, ...] | None,
  num_classes: int,
  data: Any,
  split: str,
  source: str,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (right classes bool [C, K], which classes compete bool [K]).

  Args:
    variant: name of the test set.
    labels: for objectnet, the path of {class: list of ImageNet's classes}.
    names: class names of the model; None if they are unknown.
    num_classes: K.
    data: an `input_pipeline.Datasets`.
    split: name of the split.
    source: description of the model, for messages.

  Raises:
    ValueError: the classes are not those of the test set, or of ImageNet.
  """
  given, dataset = data.class_names, data.settings.dataset
  known = class_mapping.index_of(names, num_classes)
  ids = published.imagenet_ids(1000)
  if not set(ids) <= known.keys():
    raise ValueError(
      f'ImageNet-{variant} needs a classifier with the classes of ImageNet, '
      f'but {source} has {num_classes} other classes'
    )
  expected, used = _NUM_CLASSES[variant], np.arange(len(given))
  if expected == 200 and len(given) == 1000:  # the names in TFDS
    used = _used_classes(data, split, dataset)
  if expected and len(used) != expected:
    raise ValueError(
      f'ImageNet-{variant} has {expected} classes, but the dataset {dataset} '
      f'has {len(used)}. Use the complete test set, or the type classifier'
    )
  allowed = np.zeros((len(given), num_classes), bool)
  if variant == 'objectnet':
    mapping = _read_mapping(labels, known, ids)
    for row, name in zip(allowed, given, strict=True):
      row[mapping.get(name, [])] = True
    if not allowed.any():
      raise ValueError(
        f'{labels} has none of the classes of the dataset {dataset}, such as '
        f'{given[0]!r}. Its keys must be the names of the folders'
      )
  else:
    if set(given) == {str(i) for i in range(1000)}:  # as in ImageNet-V2
      index = [known[ids[int(name)]] for name in given]
    else:
      index = class_mapping.logits_of(
        names, num_classes, given, source, dataset
      )
    allowed[used, np.asarray(index)[used]] = True
  competes = np.ones(num_classes, bool)
  if variant not in ('real', 'objectnet'):
    competes = allowed.any(0)
  return allowed, competes


def _used_classes(data, split, dataset):
  """Returns the numbers of the classes of a split that have images."""
  labels = data.sources[split].labels
  if labels is None:
    raise ValueError(
      f'the dataset {dataset} names 1000 classes, so all its labels are needed '
      'to find the classes that compete, but it is streamed. Raise '
      'config.in_memory_bytes above its size'
    )
  return np.unique(labels)


def _read_mapping(path, known, ids):
  """Returns {class of the dataset: indices of the model's classes}."""
  mapping = json_files.read_json(path)
  if not isinstance(mapping, Mapping):
    raise ValueError(
      f'{path} must be a JSON object, {{"class": ["n02123045", …], …}}'
    )
  found = {}
  for name, classes in mapping.items():
    classes = classes if isinstance(classes, list) else [classes]
    found[name] = []
    for x in classes:
      is_index = isinstance(x, int) and 0 <= x < len(ids)
      key = ids[x] if is_index else x
      if key not in known:
        raise ValueError(
          f'{path}: {name!r} has {x!r}, which is no class of ImageNet. Use '
          'WordNet ids, class names or numbers from 0 to 999'
        )
      found[name].append(known[key])
  return found


def of_rows(
  logits: jax.Array, labels: jax.Array, allowed: Any, competes: Any
) -> dict[str, jax.Array]:
  """Returns the numbers [B] of each image that `measure` needs.

  Args:
    logits: [B, K].
    labels: class numbers [B], or rows of 0 and 1 [B, C].
    allowed: see `allowed_classes`.
    competes: see `allowed_classes`.
  """
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, len(allowed))
  right = labels @ jnp.asarray(allowed, jnp.float32) > 0  # [B, K]
  logits = jnp.where(competes, logits, -jnp.inf)
  _, best = jax.lax.top_k(logits, min(5, logits.shape[1]))
  hits = jnp.take_along_axis(right, best, axis=1)
  return {'counts': right.any(1), 'right': hits[:, 0], 'in_top_5': hits.any(1)}


def measure(rows: Mapping[str, np.ndarray]) -> means.Evaluation:
  """Returns the metrics of the images that have a label.

  Args:
    rows: arrays [N] from `of_rows`.

  Raises:
    ValueError: no image has a label.
  """
  counts = rows['counts']
  if not counts.any():
    raise ValueError(
      'none of the images has a label, so nothing can be measured. Use other '
      'labels'
    )
  return means.Evaluation(
    {
      'accuracy': float(rows['right'][counts].mean()),
      'top_5': float(rows['in_top_5'][counts].mean()),
      'count': float(counts.sum()),
    }
  )


class TestSet:
  """An evaluator of a classifier on one of these test sets."""

  def __init__(
    self,
    logits: Callable,
    classes: tuple[np.ndarray, np.ndarray],
    data: Any,
    split: str,
    mesh: jax.sharding.Mesh,
  ):
    """Creates the evaluator.

    Args:
      logits: (params, images [B, H, W, C]) -> logits [B, K].
      classes: from `allowed_classes`.
      data: an `input_pipeline.Datasets`.
      split: name of the split.
      mesh: device mesh over which the batches are sharded.
    """
    self._data, self._split, self._mesh = data, split, mesh
    self._gather_fn = predictions.make_gather_fn(
      lambda params, batch, _: of_rows(
        logits(params, batch['image']), batch['label'], *classes
      ),
      mesh,
    )

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters."""
    del context
    batches = console.counting(
      self._data.evaluate(self._split),
      self._data.num_batches(self._split),
      'evaluating',
    )
    return measure(
      predictions.gather(
        self._gather_fn,
        params,
        batches,
        self._mesh,
        self._data.num_examples[self._split],
        None,
      )
    )
