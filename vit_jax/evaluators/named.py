"""Evaluators by the names of `options.TYPES`, on a dataset of their own.

Shapes:  B batch · D width of the features
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
import weakref

from flax import linen as nn
import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import class_mapping
from vit_jax.evaluators import classifier
from vit_jax.evaluators import few_shot
from vit_jax.evaluators import imagenet
from vit_jax.evaluators import knn
from vit_jax.evaluators import linear_probe
from vit_jax.evaluators import predictions
from vit_jax.inference import feature_files
from vit_jax.inference import image_features

_OF_FEATURES = {
  'knn': knn.measure,
  'few_shot': few_shot.measure,
  'linear_probe': linear_probe.measure,
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """The model that evaluators measure.

  Attributes:
    source: description of the model, for messages.
    model: linen module, with `num_classes` outputs of its head, or 0.
    class_names: names of its classes; None if they are unknown.
    has_classes: whether its outputs are logits of classes, one per image.
    module: part of the parameters that are those of `model`, as
      `metadata.Description.module`; '': all.
    towers: the towers of a model that embeds images and texts, such as
      `lit_evaluators.Towers`; None for other models.
  """

  source: str
  model: nn.Module
  class_names: tuple[str, ...] | None = None
  has_classes: bool = True
  module: str = ''
  towers: Any = None

  def params_of(self, params: Any) -> Any:
    """Returns the parameters of `model` among all parameters."""
    for name in filter(None, self.module.split('/')):
      params = params[name]
    return params


class Features:
  """Features of the images of each split, computed once for parameters.

  Those of two sets of parameters are kept, because the evaluators of a run with
  EMA each measure both sets.
  """

  def __init__(self, encode: Callable, data: Any, mesh: jax.sharding.Mesh):
    """Creates the function.

    Args:
      encode: (params, images [B, H, W, C]) -> features [B, D].
      data: an `input_pipeline.Datasets`.
      mesh: device mesh over which the batches are sharded.
    """
    self._data, self._mesh = data, mesh
    self._gather_fn = predictions.make_gather_fn(
      lambda params, batch, _: {
        'feature': encode(params, batch['image']),
        'label': batch['label'],
      },
      mesh,
    )
    self._kept = []  # [(weak references to parameters, {split: features})]

  def __call__(self, params: Any, split: str) -> feature_files.Arrays:
    """Returns {'feature': [N, D], 'label': [N]} of all images of a split."""
    features = self._features_of(params)
    if split not in features:
      batches = console.counting(
        self._data.evaluate(split),
        self._data.num_batches(split),
        f'{split} features',
      )
      found = predictions.gather(
        self._gather_fn,
        params,
        batches,
        self._mesh,
        self._data.num_examples[split],
        None,
      )
      feature_files.check_finite(found['feature'], f'the {split} split')
      features[split] = found
    return features[split]

  def _features_of(self, params):
    """Returns the stored {split: features} of parameters."""
    leaves = jax.tree.leaves(params)
    for references, features in self._kept:
      if [id(ref()) for ref in references] == list(map(id, leaves)):
        return features
    alive = [x for x in self._kept if all(ref() is not None for ref in x[0])]
    self._kept = [*alive[-1:], ([weakref.ref(x) for x in leaves], {})]
    return self._kept[-1][1]


class OfFeatures:
  """An evaluator of the features of training images and of a test split."""

  def __init__(self, measure, features, num_classes, split):
    self._measure, self._features = measure, features
    self._num_classes, self._split = num_classes, split

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters."""
    del context
    train, test = (self._features(params, x) for x in ('train', self._split))
    return self._measure(train, test, self._num_classes)


def make(
  kinds: Mapping[str, tuple[str, Mapping[str, Any]]],
  subject: Subject,
  params: Any,
  data: Any,
  split: str,
  mesh: jax.sharding.Mesh,
) -> dict[str, Callable]:
  """Returns evaluators {name: (params, Context) -> `means.Evaluation`}.

  Those of features share the features.

  Args:
    kinds: {name: (type, options)}; see `options.TYPES`.
    subject: the model.
    params: its parameters, arrays or their shapes.
    data: an `input_pipeline.Datasets`, which has a train split if a type needs
      features.
    split: name of the split to measure.
    mesh: device mesh over which the batches are sharded.

  Raises:
    ValueError: the data or the model do not suit an evaluator.
  """
  found, features = {}, None
  for name, (kind, options) in kinds.items():
    where = f'the evaluator {name!r}'
    _check_data(data, split, where, several=options.get('variant') == 'real')
    if kind == 'imagenet':
      _check_classifier(subject, where)
      classes = imagenet.allowed_classes(
        *(options['variant'], options['labels'], subject.class_names),
        *(subject.model.num_classes, data, split, subject.source),
      )
      found[name] = imagenet.TestSet(
        _logits(subject), classes, data, split, mesh
      )
      continue
    if kind in ('classifier', 'zero_shot'):
      if kind == 'classifier':
        logits, classes = _logits(subject), _classes(subject, data, where)
      else:
        logits = subject.towers.zero_shot(data, options['prompts'])
        classes = np.arange(len(data.class_names))
      found[name] = classifier.Classifier(logits, classes, data, split, mesh)
      continue
    _check_features_data(data, split, where)
    if features is None:
      encode = _encoder(subject)
      image_features.row_width(encode, params, data.image_size, subject.source)
      features = Features(encode, data, mesh)
    measure = functools.partial(_OF_FEATURES[kind], **options)
    found[name] = OfFeatures(measure, features, len(data.class_names), split)
  return found


def _encoder(subject):
  encode = image_features.make(subject.model)
  return lambda params, images: encode(subject.params_of(params), images)


def _logits(subject):
  def logits(params, images):
    params = subject.params_of(params)
    return subject.model.apply({'params': params}, images, train=False)

  return logits


def _check_classifier(subject, where):
  """Raises ValueError unless the model has logits of one class per image."""
  if not subject.has_classes or not subject.model.num_classes:
    raise ValueError(
      f'{where} needs a classifier with one class per image, but '
      f'{subject.source} has no such head. Use the types knn, few_shot or '
      'linear_probe, which measure the features'
    )


def _classes(subject, data, where):
  """Returns the logit of each class of the dataset [K]."""
  _check_classifier(subject, where)
  return class_mapping.logits_of(
    subject.class_names,
    subject.model.num_classes,
    data.class_names,
    subject.source,
    data.settings.dataset,
  )


def _check_data(data, split, where, several=False):
  """Raises ValueError unless a split has images with one class each.

  Args:
    data: an `input_pipeline.Datasets`.
    split: name of the split.
    where: name of the evaluator, for messages.
    several: whether each image must have any number of classes instead.
  """
  dataset = f'the dataset {data.settings.dataset}'
  if split not in data.sources:
    raise ValueError(
      f'{where} needs a {split} split, but {dataset} has only '
      f'{", ".join(data.sources)}'
    )
  spec = data.spec()
  if 'image' not in spec:
    raise ValueError(
      f'{where} needs images, but the run trains on {", ".join(spec)}. Set its '
      'dataset'
    )
  shape, dtype = spec.get('label', ((), np.float32))
  if 'label' not in spec or not data.class_names:
    raise ValueError(
      f'{where} needs classes, but {dataset} has none. Use another dataset'
    )
  if several:
    if len(shape) != 1:
      raise ValueError(
        f'{where} needs several labels for each image, but {dataset} has one. '
        'Set labels to a list of labels such as real.json'
      )
    return
  if shape or np.dtype(dtype).kind not in 'iu':
    raise ValueError(
      f'{where} needs one class number for each image, but the labels of '
      f'{dataset} have the type {np.dtype(dtype).name} and the shape '
      f'[{", ".join(map(str, ("B", *shape)))}]'
    )


def _check_features_data(data, split, where):
  """Raises ValueError unless each process can get all images in order."""
  for name in ('train', split):
    source = data.sources[name]
    if source.batches or source.num_examples is None:
      raise ValueError(
        f'{where} needs each image of the {name} split once, but the data are '
        'batches in an order of their own. Give arrays, or another dataset'
      )
    if source.stream and data.share.num_groups > 1:
      raise ValueError(
        f'{where} needs the images of the {name} split in one order, but the '
        'processes stream them in parts. Increase config.in_memory_bytes, so '
        'that they are kept in memory, or use one process'
      )
