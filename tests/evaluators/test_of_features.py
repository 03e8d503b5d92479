"""kNN, few-shot regression and linear probe against scikit-learn and NumPy."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model
from sklearn import neighbors
from sklearn import preprocessing

from vit_jax.evaluators import few_shot
from vit_jax.evaluators import knn
from vit_jax.evaluators import linear_probe
from vit_jax.evaluators import named
from vit_jax.evaluators import options
from vit_jax.inference import nearest

CLASSES = 7


def make_rows(num, seed, width=12):
  """Returns features around the center of each class, on different scales."""
  centers = np.random.default_rng(9).normal(size=(CLASSES, width))
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, num)
  features = centers[labels] + rng.normal(size=(num, width))
  features = features * np.geomspace(0.1, 10, width) + 3
  return {'feature': features.astype(np.float32), 'label': labels}


TRAIN, TEST = make_rows(210, 0), make_rows(101, 1)


def with_features(rows, change):
  return {**rows, 'feature': change(rows['feature']).astype(np.float32)}


# --- nearest neighbors -------------------------------------------------------


def measure_knn(train=TRAIN, test=TEST, k=(10, 20), temperature=0.07):
  found = knn.measure(train, test, CLASSES, k=k, temperature=temperature)
  return found.numbers


@pytest.mark.parametrize('temperature', [0.07, 1e6])
def test_knn_is_that_of_scikit_learn(temperature):
  """With a high temperature, it is a majority vote."""
  found = measure_knn(temperature=temperature)
  x, y = (preprocessing.normalize(t['feature']) for t in (TRAIN, TEST))
  for k in (10, 20):
    model = neighbors.KNeighborsClassifier(
      k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature)
    ).fit(x, TRAIN['label'])
    votes = model.predict_proba(y)
    top = np.argsort(-votes, axis=1, kind='stable')
    right = top == TEST['label'][:, None]
    assert found[f'accuracy_k{k}'] == pytest.approx(right[:, 0].mean())
    assert found[f'top_5_k{k}'] == pytest.approx(right[:, :5].any(1).mean())
  assert 0.3 < found['accuracy_k20'] < 1


def test_properties_of_knn(monkeypatch):
  assert measure_knn(TRAIN, TRAIN, k=(1,))['accuracy_k1'] == 1
  whole = measure_knn()
  scaled = with_features(TEST, lambda x: 8 * x)
  assert measure_knn(test=scaled) == whole
  monkeypatch.setattr(nearest, '_SIMILARITIES', 16 * 210)  # 16 rows at once
  assert measure_knn() == whole
  with pytest.raises(ValueError, match='k=300 .* the 210 training images'):
    measure_knn(k=(5, 300))
  two = {**TRAIN, 'label': TRAIN['label'] % 2}
  found = knn.measure(two, two, 2, k=(1,), temperature=0.07)
  assert found.numbers == {'accuracy_k1': 1}


def test_ties_and_the_image_itself():
  stored = nearest.normalized(np.array([[1, 0], [2, 0], [0, 1], [3, 0]]))
  indices, cosines = nearest.nearest(stored, stored, 2)
  assert indices.tolist() == [[0, 1], [0, 1], [2, 0], [0, 1]]
  assert cosines.tolist() == [[1, 1], [1, 1], [1, 0], [1, 1]]
  indices, _ = nearest.nearest(stored, stored, 2, skips_self=True)
  assert indices.tolist() == [[1, 3], [0, 3], [0, 1], [0, 1]]


# --- few-shot regression -----------------------------------------------------


def measure_few_shot(train=TRAIN, test=TEST, shots=(1, 5), seeds=(0, 1), l2=9):
  return few_shot.measure(
    train, test, CLASSES, shots=shots, seeds=seeds, l2=float(l2)
  )


@pytest.mark.parametrize('l2', [1e-3, 1024])
def test_few_shot_is_the_ridge_of_scikit_learn(l2):
  found = measure_few_shot(l2=l2)
  expected = []
  for shots in (1, 5):
    for seed in (0, 1):
      rng, chosen = np.random.default_rng(seed), []
      for label in range(CLASSES):
        own = np.flatnonzero(TRAIN['label'] == label)
        chosen += rng.permutation(own)[:shots].tolist()
      x = TRAIN['feature'][chosen].astype(np.float64)
      mean, std = x.mean(0), x.std(0) + 1e-5

      def prepared(rows, mean=mean, std=std):
        return np.c_[(rows - mean) / std, np.full(len(rows), 100)]

      targets = np.where(
        TRAIN['label'][chosen][:, None] == np.arange(CLASSES), 1, -1
      )
      model = linear_model.Ridge(l2, fit_intercept=False)
      model.fit(prepared(x), targets)
      scores = model.predict(prepared(TEST['feature']))
      few = {name: values[chosen] for name, values in TRAIN.items()}
      np.testing.assert_allclose(
        few_shot.scores(few, TEST['feature'], CLASSES, l2), scores, atol=1e-6
      )
      accuracy = (scores.argmax(1) == TEST['label']).mean()
      expected.append({'shots': shots, 'seed': seed, 'accuracy': accuracy})
  assert found.tables['few_shot'] == expected
  for i, shots in enumerate((1, 5)):
    mean = np.mean([x['accuracy'] for x in expected[2 * i : 2 * i + 2]])
    assert found.numbers[f'accuracy_{shots}shot'] == pytest.approx(mean)


@pytest.mark.parametrize('num', [5, 30])
def test_both_forms_of_the_ridge_are_equal(num):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(num, 12)), rng.normal(size=(num, 3))
  primal, dual = (
    few_shot.ridge(x, y, 3.0, form) for form in ('primal', 'dual')
  )
  np.testing.assert_allclose(primal, dual, atol=1e-10)
  # The gradient of |x w − y|² + l2 |w|² is 0.
  gradient = x.T @ (x @ primal - y) + 3 * primal
  np.testing.assert_allclose(gradient, 0, atol=1e-10)
  np.testing.assert_array_equal(
    few_shot.ridge(x, y, 3.0), primal if num == 30 else dual
  )


def test_properties_of_few_shot():
  whole = measure_few_shot()
  assert measure_few_shot() == whole
  moved = measure_few_shot(
    *(with_features(rows, lambda x: 1000 * x - 5) for rows in (TRAIN, TEST))
  )
  assert moved.numbers == pytest.approx(whole.numbers, abs=0.02)
  for seed in (0, 1):
    few, more = (few_shot.choose(TRAIN['label'], n, seed) for n in (2, 5))
    assert set(few) < set(more)
    assert np.bincount(TRAIN['label'][more]).tolist() == [5] * CLASSES
  one_hot = [
    {**x, 'feature': np.eye(CLASSES)[x['label']]} for x in (TRAIN, TEST)
  ]
  found = measure_few_shot(*one_hot, shots=(1,), l2=1024)
  assert found.numbers == {'accuracy_1shot': 1}
  smallest = np.bincount(TRAIN['label']).min()
  with pytest.raises(ValueError, match=f'shots=90 .* at most {smallest}'):
    measure_few_shot(shots=(1, 90))


# --- linear probe ------------------------------------------------------------


@pytest.mark.parametrize('l2', [0.3, 0.01])
def test_the_head_is_that_of_scikit_learn(l2):
  head = linear_probe.fit(TRAIN['feature'], TRAIN['label'], CLASSES, l2)
  model = linear_model.LogisticRegression(
    C=1 / (l2 * 210), solver='newton-cg', tol=1e-8, max_iter=1000
  )
  model.fit(TRAIN['feature'].astype(np.float64), TRAIN['label'])
  np.testing.assert_allclose(
    linear_probe.logits(head, TEST['feature']) - head['bias'].mean(),
    model.decision_function(TEST['feature']) - model.intercept_.mean(),
    atol=0.02,
  )


def test_the_strength_is_chosen_on_held_out_training_images():
  strengths = 10.0, 0.3, 1e-2, 1e-4
  fields = dict(l2_strengths=strengths, held_out=0.2)
  found = linear_probe.measure(TRAIN, TEST, CLASSES, **fields)
  rows = found.tables['linear_probe']
  assert [row['l2'] for row in rows] == list(strengths)
  best = max(rows, key=lambda row: (row['accuracy'], -row['loss']))
  assert found.numbers['l2'] == best['l2']
  head = linear_probe.fit(TRAIN['feature'], TRAIN['label'], CLASSES, best['l2'])
  right = linear_probe.logits(head, TEST['feature']).argmax(1) == TEST['label']
  assert found.numbers['accuracy'] == pytest.approx(float(right.mean()))
  # Other test images choose nothing.
  other = {**TEST, 'label': (TEST['label'] + 1) % CLASSES}
  again = linear_probe.measure(TRAIN, other, CLASSES, **fields)
  assert again.tables == found.tables and again.numbers['l2'] == best['l2']


# --- options -----------------------------------------------------------------


@pytest.mark.parametrize(
  'given, message',
  [
    ({'k': (5, 0)}, 'x.k='),
    ({'k': ()}, 'x.k='),
    ({'shots': (1, 1)}, 'x.shots='),
    ({'shots': (1, 2.5)}, 'x.shots='),
    ({'seeds': (-1,)}, 'x.seeds='),
    ({'temperature': 0.0}, 'x.temperature=0.0 must be greater than 0'),
    ({'l2_strengths': (1.0, -1.0)}, 'x.l2_strengths='),
    ({'held_out': 1.0}, 'x.held_out=1.0 must be greater than 0 and below 1'),
    ({'prompts': ()}, 'x.prompts=() must be texts with {}'),
    ({'prompts': ('{}', {})}, "x.prompts=('{}', {}) must be texts with {}"),
    ({'captions': ''}, "x.captions='' must be the path of a table"),
  ],
)
def test_wrong_options(given, message):
  for kind in options.TYPES:
    # Only these options have no default.
    own = {'imagenet': {'variant': 'a'}, 'retrieval': {'captions': 'x.csv'}}
    options.check(options.defaults(kind) | own.get(kind, {}), '')
  with pytest.raises(ValueError) as error:
    options.check(given, 'x.')
  assert message in str(error.value)


def test_the_nearest_type_is_suggested():
  with pytest.raises(ValueError, match="'fewshot'; did you mean 'few_shot'"):
    options.defaults('fewshot')


def test_features_of_both_parameter_sets_are_computed_once(monkeypatch):
  """The evaluators of a run with EMA measure each set in turn."""
  computed = []

  def gather(fn, params, *rest):
    computed.append(float(params['w']))
    return TRAIN

  monkeypatch.setattr(named.predictions, 'gather', gather)
  monkeypatch.setattr(named.predictions, 'make_gather_fn', lambda *_: None)
  data = types.SimpleNamespace(
    evaluate=lambda split: (),
    num_batches=lambda split: 1,
    num_examples={'train': 1, 'test': 1},
  )
  features = named.Features(None, data, None)
  for step in (1, 2):
    ema, raw = ({'w': jnp.float32(step + x)} for x in (0, 0.5))
    for params in (ema, raw, ema, raw):
      for split in ('train', 'test'):
        assert features(params, split) is TRAIN
  assert computed == [1, 1, 1.5, 1.5, 2, 2, 2.5, 2.5]
