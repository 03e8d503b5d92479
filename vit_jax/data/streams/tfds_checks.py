"""Checks of a TFDS dataset before it is read or downloaded."""

import re
import socket
from typing import Any
import urllib.parse
import urllib.request


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
