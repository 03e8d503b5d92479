"""Addresses of weights files: a path, https://, gs:// or hf://.

Only this module distinguishes these kinds of addresses.
"""

import os
import shlex
import urllib.parse

from vit_jax.checkpoint.pretrained import cache
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import hub
from vit_jax.checkpoint.pretrained import registry

_GOOGLE = 'https://storage.googleapis.com'  # For gs:// without credentials.


def is_url(address: str) -> bool:
  """Returns whether an address is a URL, not a path."""
  return '://' in address


def published(what: registry.Published, source: str) -> list[str]:
  """Returns the addresses of a `registry.Published` at one source."""
  if source == registry.HUB:
    return [registry.HUB + repository for repository in what.hub]
  path = urllib.parse.quote(what.path) if is_url(source) else what.path
  return [f'{source.rstrip("/")}/{path}']


def cached(address: str) -> str | None:
  """Returns the path of a file that needs no download, else None."""
  if _is_on_hub(address):
    return hub.cached(address)
  path = cache.path_for(_https(address)) if is_url(address) else address
  return path if os.path.isfile(path) else None


def fetch(address: str) -> str:
  """Returns the path of an address's file, downloaded if it is not cached.

  Raises:
    download.Unavailable: contains the answer of the server.
    ValueError: the address is malformed, or the file cannot be written.
  """
  if _is_on_hub(address):
    return hub.fetch(address)
  if is_url(address):
    return download.fetch(_https(address))
  if os.path.isfile(address):
    return address
  raise download.Unavailable('no such file')


def host(address: str) -> str:
  """Returns the host of an address; all Hub addresses have one host."""
  if _is_on_hub(address):
    return registry.HUB
  return cache.split(address).netloc


def commands(address: str, to: str) -> list[str]:
  """Returns shell commands that download an address's file by hand.

  Args:
    address: address of the file.
    to: path to write to; None: the name of the file at this address.
  """
  if not is_url(address):
    return []
  if _is_on_hub(address):
    repository, revision, file = hub.parse(address)
    to = registry.split(to)[0] if to else os.path.basename(repository)
    command = ['hf', 'download', repository, *([file] if file else [])]
    if revision != 'main':
      command += ['--revision', revision]
    return [shlex.join([*command, '--local-dir', to])]
  url = _https(address)
  path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
  to = to or os.path.basename(path)
  curl = shlex.join(['curl', '-fL', '--create-dirs', '-o', to, url])
  if not url.startswith(f'{_GOOGLE}/'):
    return [curl]
  return [shlex.join(['gcloud', 'storage', 'cp', f'gs:/{path}', to]), curl]


def _is_on_hub(address):
  return address.startswith(registry.HUB)


def _https(url):
  """Returns the HTTPS URL of a gs:// URL; other URLs do not change."""
  scheme, _, rest = url.partition('://')
  if scheme == 'gs':
    return f'{_GOOGLE}/{urllib.parse.quote(rest)}'
  if scheme not in ('https', 'http'):
    raise ValueError(
      f'{url} has an unsupported scheme. Use a path, https://, gs:// or hf://.'
    )
  return url
