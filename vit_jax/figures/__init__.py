"""Figures of what a model has learned: attention maps, filters, features.

`attention_maps`, `filters` and `features` are functions of arrays. They know no
model. `attention_weights` obtains the weights, `drawing` draws, and `catalog`
makes each figure of a model by its name.

Imports `checkpoint`, `console`, `data`, `inference` and `models`.
"""

import importlib.util


def check_installed() -> None:
  """Raises ValueError if matplotlib, which draws all figures, is missing."""
  if importlib.util.find_spec('matplotlib') is None:
    raise ValueError(
      'matplotlib is not installed, and figures need it: pip install matplotlib'
    )
