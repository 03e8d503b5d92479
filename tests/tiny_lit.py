"""Tiny LiT models for tests, with files in the format of published ones."""

import pathlib
import shutil

import jax
import numpy as np

from tests import reference
from vit_jax import models
from vit_jax.checkpoint import weights_file
from vit_jax.models import variants

VOCABULARIES = {
  'bert': reference.DATA / 'tokenizers/bert_vocab.txt',
  'transformer': reference.DATA / 'tokenizers/sp_bpe.model',
}
NAMES = {'bert': 'LiT-B16B', 'transformer': 'LiT-L16Ti'}
VOCAB_SIZES = {'bert': 253, 'transformer': 320}
IMAGE_SIZE, MAX_TOKENS = 224, 16


def register(monkeypatch):
  """Makes two published names stand for tiny models; removes other names."""
  monkeypatch.setattr(
    variants,
    'TWO_TOWERS',
    {
      name: dict(
        image='testing',
        image_dim=8,
        text=kind,
        text_settings=dict(
          hidden_size=8,
          mlp_dim=8,
          num_heads=2,
          num_layers=1,
          out_dim=8,
          vocab_size=VOCAB_SIZES[kind],
        ),
      )
      for kind, name in NAMES.items()
    },
  )


def params(name):
  """Returns parameters so large that texts and images clearly differ."""
  shapes = jax.eval_shape(
    lambda: models.get_model(name).init(
      jax.random.key(0),
      images=np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3)),
      tokens=np.zeros((1, MAX_TOKENS), np.int32),
    )
  )['params']
  return jax.tree.map(lambda x: 20 * x, reference.params_like(shapes))


def save(monkeypatch, kind, folder):
  """Saves weights next to a vocabulary; returns (name, path of the weights)."""
  register(monkeypatch)
  name = NAMES[kind]
  weights = pathlib.Path(folder) / f'{name}.npz'
  weights_file.save(str(weights), params(name))
  vocabulary = VOCABULARIES[kind]
  shutil.copy(vocabulary, weights.with_suffix(vocabulary.suffix))
  return name, str(weights)
