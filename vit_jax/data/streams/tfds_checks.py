"""Checks of a TFDS dataset before it is read or downloaded."""

import re
import socket
from typing import Any
import urllib.parse
import urllib.request

import numpy as np

from vit_jax import console
from vit_jax.data.data_settings import DataSettings


def known_of(name: str) -> str:
  """Returns a sentence about the configs and versions of a dataset, or ''."""
  import tensorflow_datasets as tfds

  try:
    known = tfds.builder_cls(re.split('[/:]', name)[0])
  except Exception:  # a dataset of another program
    return ''
  configs = ', '.join(list(known.builder_configs)[:5])
  configs = f' and the configs {configs}' if configs else ' and no configs'
  return f'TFDS has its version {known.VERSION}{configs}. '


def check_format(builder: Any, data_dir: str | None) -> None:
  """Raises ValueError if the files of a dataset have an unknown format."""
  file_format = builder.info.file_format
  if file_format is None or file_format.value == 'tfrecord':
    return
  folder = f'{data_dir or "~/tensorflow_datasets"}_tfrecord'
  raise ValueError(
    f'The TFDS dataset {builder.name} in {builder.data_dir} is prepared as '
    f'{file_format.value}, but vit_jax reads tfrecord. Prepare it again in '
    'another folder: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{builder.info.full_name.rpartition('/')[0]}', "
    f"data_dir='{folder}', file_format='tfrecord').download_and_prepare()\" "
    f'Then use config.tfds_data_dir={folder}'
  )


def check_reachable(builder: Any) -> None:
  """Raises OSError if a host has no address; TFDS would retry for minutes."""
  if urllib.request.getproxies() or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos}
  for host in sorted(hosts - {None})[:1]:
    try:
      socket.getaddrinfo(host, 443)
    except OSError as error:
      raise OSError(f'{host} cannot be reached ({error})') from error


def check_image(feature: Any, settings: DataSettings) -> None:
  """Raises ValueError if the decoder does not read the images of a feature.

  TFDS stores uint16 images as PNG files. Their upper 8 bits are used. It stores
  floats as PNG files with four channels, which are no colors.
  """
  import tensorflow_datasets as tfds

  name = f'config.dataset={settings.dataset!r}: the feature image'
  if not isinstance(feature, tfds.features.Image):
    raise ValueError(
      f'{name} is a {type(feature).__name__}, but must be an Image. Read the '
      'arrays yourself, and give them with vit_jax.data.from_arrays'
    )
  dtype, channels = np.dtype(feature.np_dtype), feature.shape[-1]
  if dtype not in (np.uint8, np.uint16) or channels not in (None, 1, 3, 4):
    raise ValueError(
      f'{name} has the dtype {dtype.name} and {channels} channel(s), but must '
      'have 8 or 16 bits and 1, 3 or 4 channels. Read the arrays yourself, and '
      'give them with vit_jax.data.from_arrays and its value_range'
    )
  if channels == 4 and settings.background == 'auto':
    raise ValueError(
      f'{name} has 4 channels, and the last one is alpha. Set '
      'config.pp.background to the color under transparent pixels, such as '
      'white, or to ignore, which shows hidden colors'
    )
  if dtype == np.uint16:
    console.log_info(
      f'{settings.dataset}: images have 16 bits; the upper 8 bits are used'
    )
