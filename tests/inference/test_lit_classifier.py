import jax
import numpy as np
import pytest

from tests import reference
from tests import tiny_lit
from vit_jax.data import class_names
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings

NAMES = ['cat', 'the dog', 'fire truck']
PROMPTS = ['a photo of a {}.', 'the {}', '{} {}']
JPEGS = sorted(reference.JPEGS.glob('[0-3]_*.jpg'))


@pytest.fixture(name='lit', params=['bert', 'transformer'])
def fixture_lit(request, tmp_path, monkeypatch):
  name, weights = tiny_lit.save(monkeypatch, request.param, tmp_path)
  return lit_embeddings.load(name, weights)


def by_hand(lit, images):
  """Returns logits [B, K] in float64, with one image or text at a time."""

  def unit(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z)

  @jax.jit
  def apply(inputs):
    zimg, ztxt, _ = lit.model.apply({'params': lit.params}, **inputs)
    return ztxt if zimg is None else zimg

  def image_embedding(image):
    return unit(apply({'images': image[None]})[0])

  def text_embedding(text):
    return unit(apply({'tokens': lit.tokenize(text).numpy()})[0])

  classes = [
    unit(
      sum(
        text_embedding(text)
        for text in (f'a photo of a {name}.', f'the {name}', f'{name} {name}')
      )
      / 3
    )
    for name in NAMES
  ]
  temperature = np.exp(np.float64(lit.params['t'][0]))
  return np.array(
    [
      [temperature * image_embedding(image) @ z for z in classes]
      for image in images
    ]
  )


def softmax(logits):
  return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_logits_equal_a_computation_by_hand(lit):
  images = np.stack([lit_embeddings.read_image(path) for path in JPEGS[:2]])
  model, params = lit_classifier.make_classifier(lit, NAMES, PROMPTS)
  logits = by_hand(lit, images)
  assert np.ptp(logits, axis=1).min() > 1e-3  # the classes do differ
  np.testing.assert_allclose(
    model.apply({'params': params}, images), logits, atol=2e-3
  )


def test_photos_match_their_texts():
  """With published embeddings, each photo's text has a probability ≥ 99 %."""
  with np.load(reference.DATA / 'lit_embeddings.npz') as file:
    shares = softmax(
      np.asarray(
        lit_classifier.logits(
          file['zimg'].astype(np.float32),
          file['ztxt'].astype(np.float32),
          file['temperature'],
        ),
        np.float64,
      )
    )
  np.testing.assert_array_less(0.99, np.diag(shares))
  np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)


def test_the_mean_over_prompts_has_length_one():
  z = np.array([[[1, 0], [0, 1]], [[0.6, 0.8], [0.6, 0.8]]])
  np.testing.assert_allclose(
    lit_classifier.unit_mean(z), [[0.5**0.5] * 2, [0.6, 0.8]]
  )


@pytest.mark.parametrize(
  'names, prompts, message',
  [
    ([], PROMPTS, r'class names \[\]: .*at least two'),
    (['cat'], PROMPTS, r"class names \['cat'\]: .*at least two"),
    ('cat', PROMPTS, "class names: 'cat' is one text"),
    (['cat', ' '], PROMPTS, 'a class name is empty'),
    (['cat', 'dog', 'cat'], PROMPTS, "name 'cat' is repeated. "),
    (['cat', 'Cat'], PROMPTS, "name 'Cat' is repeated, also as 'cat'"),
    (NAMES, [], 'no prompts'),
    (NAMES, 'a {}', "prompts: 'a {}' is one text"),
    (NAMES, ['a {}', 'a photo'], "prompt 'a photo' has no {}"),
  ],
)
def test_names_and_prompts_that_cannot_be_used(names, prompts, message):
  with pytest.raises(ValueError, match=message):
    lit_classifier.embed_classes(None, names, prompts)


def test_classes_that_the_tokenizer_cannot_distinguish(lit):
  long = 'a photo, taken on a cold day on the beach at ten or so, of one {}'
  with pytest.raises(ValueError, match="'cat' and 'the dog' .* 16 tokens"):
    lit_classifier.embed_classes(lit, NAMES, [long])
  lit_classifier.embed_classes(lit, NAMES, [long, '{}'])


def test_class_names_become_words():
  assert lit_classifier.readable(['aquarium_fish', 'bed']) == (
    'aquarium fish',
    'bed',
  )
  assert lit_classifier.readable(class_names.imagenet_ids(1000))[281] == 'tabby'


@pytest.mark.parametrize('lit', ['transformer'], indirect=True)
def test_the_classifier_is_an_ordinary_model(lit):
  """`init` makes the same parameters, without those of the text tower."""
  model, params = lit_classifier.make_classifier(lit, NAMES)
  initial = jax.eval_shape(
    lambda: model.init(jax.random.key(0), reference.images(), train=False)
  )['params']
  del params['towers']['txt']  # replaced by the class embeddings
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, initial)
