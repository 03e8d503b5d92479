"""Reads Hugging Face's `config.json`: the facts of a model by `model_type`."""


def read(config, preprocessor):
  raise ValueError('not yet')
