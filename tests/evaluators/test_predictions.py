import types

import jax
import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluators import predictions
from vit_jax.evaluators.metrics import average_precision
from vit_jax.parallel import sharding
from vit_jax.tasks import task as tasks_task


@pytest.mark.parametrize('num_devices', [1, 8])
def test_each_example_is_gathered_once_and_padding_is_dropped(num_devices):
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  rng = np.random.default_rng(0)
  mask = (rng.uniform(size=(3, 8)) < 0.7).astype(np.float32)
  batches = [
    {'x': np.arange(8 * i, 8 * i + 8, dtype=np.float32), 'mask': mask[i]}
    for i in range(3)
  ]
  gather_fn = predictions.make_gather_fn(
    lambda params, batch, context: {
      'a': batch['x'] + params,
      'b': batch['x'][:, None] * context,
    },
    mesh,
  )
  found = predictions.gather(
    gather_fn, 100.0, batches, mesh, int(mask.sum()), np.ones(2)
  )
  expected = np.flatnonzero(mask.ravel())
  np.testing.assert_array_equal(found['a'], expected + 100)
  np.testing.assert_array_equal(found['b'], np.stack([expected] * 2, 1))
  for wrong, message in (
    (int(mask.sum()) + 1, 'metadata .* lists'),
    (0, 'metadata .* lists'),
  ):
    with pytest.raises(ValueError, match=message):
      predictions.gather(gather_fn, 1.0, batches, mesh, wrong, np.ones(2))
  with pytest.raises(ValueError, match='no examples'):
    predictions.gather(gather_fn, 1.0, [], mesh, 0, np.ones(2))


def test_the_loss_is_a_mean_and_metrics_get_all_outputs():
  mesh = sharding.make_mesh(jax.devices()[:1])
  losses = np.float32([1, 2, 6, 100])
  batch = {'x': losses, 'mask': np.float32([1, 1, 1, 0])}
  task = types.SimpleNamespace(
    checked_transform=lambda key, batch, step, train: batch,
    checked_loss=lambda params, batch, context: (
      batch['x'],
      {},
      {'double': 2 * batch['x']},
    ),
  )
  data = types.SimpleNamespace(
    evaluate=lambda split: iter([batch]),
    num_batches=lambda split: 1,
    num_examples={'test': 3},
  )
  evaluator = predictions.Predictions(
    task, data, 'test', mesh, lambda double: {'largest': double.max()}
  )
  context = tasks_task.Context(key=0, step=0)
  jax.tree_util.register_pytree_node(
    types.SimpleNamespace, lambda x: ((), x), lambda x, _: x
  )
  assert evaluator({}, context).numbers == {'largest': 12, 'loss': 3}


@pytest.mark.parametrize('num_scores', [2, 7, 1000])
def test_average_precision_is_that_of_scikit_learn(num_scores):
  """With few different scores, there are many ties."""
  rng = np.random.default_rng(num_scores)
  labels = (rng.uniform(size=(60, 5)) < [0.02, 0.1, 0.5, 0.9, 1]).astype(float)
  labels[7] = 1  # each class has an example
  scores = rng.integers(num_scores, size=(60, 5)) / 3.0
  expected = metrics.average_precision_score(labels, scores, average=None)
  found = average_precision.by_class(labels, scores)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  labels[:, 2] = 0
  found = average_precision.by_class(labels, scores)
  assert np.isnan(found).tolist() == [False, False, True, False, False]
