"""Predictions of a trained model for the test split of its run.

Shapes:  N examples of the split · B batch · H, W image height, width
         C channels · K classes
"""

from collections.abc import Iterable
import dataclasses
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from vit_jax import console
from vit_jax.data import input_pipeline
from vit_jax.inference import loaded_model
from vit_jax.inference import outputs as model_outputs
from vit_jax.parallel import sharding
from vit_jax.report import numbers
from vit_jax.run import setup


@dataclasses.dataclass(frozen=True)
class TestPass:
  """A model and the test split that it is measured on.

  Attributes:
    trained: the model.
    data: the data of the run.
  """

  trained: loaded_model.LoadedModel
  data: input_pipeline.Datasets

  def _batches(self):
    """Yields batches without padding."""
    for batch in self.data.evaluate('test'):
      used = _used(batch)
      yield {name: np.asarray(x)[used] for name, x in batch.items()}

  def images(self, indices: Iterable[int]) -> dict[int, np.ndarray]:
    """Returns {index: image [H, W, C] in [-1, 1]} of some test images."""
    wanted, found, first = set(indices), {}, 0
    batches = self._batches() if wanted else ()
    for batch in batches:
      count = len(batch['image'])
      found |= {
        i: batch['image'][i - first].astype(np.float32)
        for i in wanted
        if first <= i < first + count
      }
      first += count
      if len(found) == len(wanted):
        break
    return found

  def spaced_images(self, count: int) -> np.ndarray:
    """Returns `count` test images, or all, at equal distances [B, H, W, C]."""
    total = self.data.num_test
    count = min(count, total)
    found = self.images(i * total // count for i in range(count))
    return np.stack([found[i] for i in sorted(found)])

  @property
  def kind(self) -> str:
    """'classes', 'label_sets', 'targets', or '' without labels to compare."""
    trained = self.trained
    if not trained.model.num_classes or 'label' not in self.data.spec():
      return ''
    if trained.targets:
      return 'targets'
    if not trained.class_names:
      return ''
    return 'label_sets' if trained.task == 'multi_label' else 'classes'

  def measure(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (numbers for JSON, arrays by example) of the split.

    Raises:
      ValueError: the classes of the model and of the data differ.
    """
    trained, kind = self.trained, self.kind
    if kind != 'targets' and trained.class_names != tuple(
      self.data.class_names
    ):
      raise ValueError(
        'the model and the data have different classes, or another order'
      )
    parts = []
    batches = console.counting(
      self.data.evaluate('test'), self.data.num_batches('test'), 'report'
    )
    for batch in batches:
      # With padding, all batches use the same compiled program.
      images, used = np.asarray(batch['image']), _used(batch)
      logits = trained.logits(images, len(images), pixel_range=(-1, 1))
      labels = np.asarray(batch['label'])
      parts.append(_OUTPUTS[kind](trained, logits[used], labels[used]))
    arrays = {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    names = trained.class_names
    if kind == 'targets':
      targets = trained.targets
      found = numbers.of_targets(
        **arrays, names=targets.names, units=targets.units
      )
    elif kind == 'label_sets':
      found = numbers.of_label_sets(
        **arrays, class_names=names, thresholds=trained.thresholds
      )
    else:
      found = numbers.of_classes(arrays, names)
    return found, arrays


def _used(batch):
  """Returns the rows of a batch that are not padding."""
  return np.flatnonzero(np.asarray(batch['mask']) > 0)


def _of_classes(trained, logits, labels):
  probabilities = model_outputs.predictions(trained, logits)
  if labels.ndim == 2:  # class probabilities
    labels = labels.argmax(-1)
  rows = np.arange(len(labels))
  predicted = logits.argmax(-1)
  return {
    'labels': labels.astype(np.int64),
    'predicted': predicted.astype(np.int64),
    'probability': probabilities[rows, predicted],
    'label_probability': probabilities[rows, labels],
  }


def _of_label_sets(trained, logits, labels):
  del trained
  return {'labels': labels, 'scores': logits}


def _of_targets(trained, logits, labels):
  labels = labels[:, None] if labels.ndim == 1 else labels
  return {
    'labels': labels,
    'predicted': model_outputs.predictions(trained, logits),
  }


_OUTPUTS = {
  'classes': _of_classes,
  'label_sets': _of_label_sets,
  'targets': _of_targets,
}


def open_data(
  trained: loaded_model.LoadedModel, config: ConfigDict
) -> TestPass:
  """Returns the `TestPass` of a model.

  Args:
    trained: the model.
    config: settings of its run, which name the data.

  Raises:
    ValueError: the data cannot be read, or have no test split.
  """
  mesh = sharding.make_mesh(**config.mesh)
  data = setup.load_data(config, mesh, check_images=False, streams=True)
  if not data.num_test:
    raise ValueError('the data have no test split')
  return TestPass(trained, data)
