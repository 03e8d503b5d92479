"""Writes features of many images to one file: .npz or .parquet.

A file has the arrays `file` (names of the images that could be decoded, in
their order), `feature` [N, …], and `label` [N] if the images have class
numbers. `origin` is a JSON text: what the features depend on. Parquet files
have it in the metadata of their schema, and one list of floats per image.

Shapes:  N images that could be decoded · D width of the features
"""

from collections.abc import Sequence
import json
import math
import os
import types
from typing import Any
import zipfile

import numpy as np

from vit_jax.files import npz_files
from vit_jax.files import regular_files
from vit_jax.inference import embedding
from vit_jax.inference import feature_files

SUFFIXES = ('.npz', '.parquet')
_ORIGIN, _SHAPE = b'vit_jax origin', b'vit_jax shape'


def check(path: str) -> None:
  """Raises ValueError unless the format of a path can be written."""
  if not path.endswith(SUFFIXES):
    raise ValueError(f'out={path} must end in {" or ".join(SUFFIXES)}')
  if path.endswith('.parquet'):
    _pyarrow(path)


def _pyarrow(path) -> types.ModuleType:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      f'{path} needs pyarrow. Install it: pip install pyarrow, or use .npz'
    ) from error
  return parquet


def write(
  path: str, folder: str, names: Sequence[str], origin: dict[str, Any]
) -> list[int]:
  """Writes the features of a folder to a file, part by part.

  The file appears only when it is complete.

  Args:
    path: path of the file, with one of `SUFFIXES`.
    folder: features from `embedding.compute`, complete.
    names: names of all images.
    origin: what the features depend on; values for JSON.

  Returns:
    The numbers of the images that could not be decoded.
  """
  columns = [
    feature_files.joined(
      list(feature_files.parts(folder, embedding.SPLIT, (name,)))
    )[name]
    for name in ('decoded', 'label')
  ]
  decoded, labels = columns
  indices = np.flatnonzero(decoded)
  arrays = {'file': np.array([names[i] for i in indices], str)}
  if (labels[indices] >= 0).any():
    arrays['label'] = labels[indices]

  def parts():
    for part in feature_files.parts(folder, embedding.SPLIT, embedding.ARRAYS):
      yield part['feature'][part['decoded']]

  writer = _write_npz if path.endswith('.npz') else _write_parquet
  writer(f'{path}.partial', arrays, parts, json.dumps(origin))
  os.replace(f'{path}.partial', path)
  return np.flatnonzero(~decoded).tolist()


def _write_npz(path, arrays, parts, origin):
  with zipfile.ZipFile(path, 'w') as file:

    def member(name):
      return file.open(f'{name}.npy', 'w', force_zip64=True)

    for name, array in {**arrays, 'origin': np.array(origin)}.items():
      with member(name) as out:
        np.lib.format.write_array(out, array, allow_pickle=False)
    shape = len(arrays['file']), *next(parts()).shape[1:]
    header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    with member('feature') as out:
      np.lib.format.write_array_header_2_0(out, header)
      for rows in parts():
        out.write(np.ascontiguousarray(rows, '<f4').data)


def _write_parquet(path, arrays, parts, origin):
  import pyarrow as pa

  shape = next(parts()).shape[1:]
  kinds = {'file': pa.string(), 'label': pa.int64()}
  fields = [pa.field(name, kinds[name]) for name in arrays]
  width = math.prod(shape)
  schema = pa.schema(
    [*fields, pa.field('feature', pa.list_(pa.float32(), width))],
    {_ORIGIN: origin, _SHAPE: json.dumps(shape)},
  )
  first = 0
  with _pyarrow(path).ParquetWriter(path, schema) as writer:
    for rows in parts():
      end = first + len(rows)
      columns = [
        pa.array(x[first:end].tolist(), kinds[k]) for k, x in arrays.items()
      ]
      flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
      writer.write_table(pa.Table.from_arrays([*columns, flat], schema=schema))
      first = end


def origin_of(path: str) -> dict[str, Any] | None:
  """Returns the `origin` of a file that `write` wrote; else None."""
  try:
    if path.endswith('.npz'):
      return json.loads(str(npz_files.read(path, ['origin'])['origin']))
    if regular_files.other_kind(path):
      return None
    metadata = _pyarrow(path).read_schema(path).metadata
    return json.loads(metadata[_ORIGIN])
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def read(path: str) -> dict[str, np.ndarray]:
  """Returns the arrays `file` [N] and `feature` [N, …] of a file."""
  if path.endswith('.npz'):
    return npz_files.read(path, ('file', 'feature'))
  table = _pyarrow(path).read_table(path, columns=['file', 'feature'])
  shape = json.loads(table.schema.metadata[_SHAPE])
  flat = table['feature'].combine_chunks().flatten().to_numpy()
  return {
    'file': np.array(table['file'].to_pylist(), str),
    'feature': flat.reshape(len(table), *shape),
  }
