"""Weights from the Hugging Face hub: hf://ORG/REPO[@REVISION][/FILE].

huggingface_hub knows the hub's addresses, tokens and answers, and is asked
where a file is; `download` fetches it, since the library's own downloads begin
anew after an interruption, and take 23 s to say that there is no network.
HF_ENDPOINT, HF_TOKEN and `hf auth login` mean what they mean everywhere.

In the cache, each commit has a folder of its own, so that a push between two
downloads mixes no files: REVISION.commit names the last one that was fetched.
"""

import json
import os
import re
import urllib.parse

from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.pretrained import cache
from vit_jax.checkpoint.pretrained import download

_SECONDS = 15  # for an answer about a file
_READABLE = ('.safetensors', '.npz')


def parse(url):
  """(repository, revision, file or '') of a URL.

  Raises:
    ValueError: it is not of the form above.
  """
  match = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?', url)
  if not match:
    raise ValueError(
      f'{url} is not of the form hf://ORG/REPO[@REVISION][/FILE]'
    )
  repo, revision, file = match.groups(default='')
  return repo, urllib.parse.unquote(revision) or 'main', file


def _endpoint():
  return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _folder(repo, revision):
  """Where files of a revision lie in the cache."""
  return cache.path_for(
    f'{_endpoint()}/{repo}/{urllib.parse.quote(revision, safe="")}'
  )


def _note(repo, revision):
  """The file that names the commit last fetched of a revision."""
  return f'{_folder(repo, revision)}.commit'


def _last_commit(repo, revision):
  """The commit last fetched of a revision; the revision if there is none."""
  try:
    with open(_note(repo, revision), encoding='utf-8') as file:
      return file.read()
  except FileNotFoundError:
    return revision


def cached(url):
  """The path of what was fetched before, by us or by other users of the hub.

  Where the URL names no file, only the hub knows whether one that is not called
  `model.safetensors` is its only one.
  """
  repo, revision, file = parse(url)
  for name in [file] if file else ['model.safetensors', npz_names.SHARDS]:
    path = _cached_file(repo, revision, name)
    if path and _is_index(name):
      there = all(
        os.path.isfile(os.path.join(os.path.dirname(path), shard))
        for shard in _shards(path)
      )
      path = os.path.dirname(path) if there else None
    if path:
      return path
  return None


def _cached_file(repo, revision, file):
  """The path of one file fetched before, or None."""
  path = os.path.join(_folder(repo, _last_commit(repo, revision)), file)
  if os.path.isfile(path):
    return path
  try:
    import huggingface_hub
  except ImportError:
    return None
  path = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
  return path if isinstance(path, str) else None


def _is_index(file):
  """Whether a file only says in which others the weights are."""
  return os.path.basename(file) == npz_names.SHARDS


def _shards(index):
  """Names of the parts that an index lists, which lie beside it."""
  try:
    with open(index, encoding='utf-8') as file:
      names = sorted(set(json.load(file)['weight_map'].values()))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise download.Unavailable(
      f'{index} is no index of weights ({error!r}): delete it, so that it is '
      'fetched again'
    ) from error
  if not names or any(os.path.basename(name) != name for name in names):
    raise download.Unavailable(f'{index} names no files beside it')
  return names


def _weights(files):
  """The file of weights among a repository's; None if it is not clear."""
  readable = [file for file in files if file.endswith(_READABLE)]
  for file in ('model.safetensors', npz_names.SHARDS):
    if file in files:
      return file
  return readable[0] if len(readable) == 1 else None


def fetch(url):
  """The path of a file on the hub, fetched unless it is in the cache.

  Without a file in the URL it is `model.safetensors`, whole or in shards, or
  the only .safetensors or .npz; of shards it is the folder that holds them. The
  repository's `config.json` is put beside it, where there is one: it tells
  architecture and classes.

  Raises:
    download.Unavailable: with the hub's answer.
    ValueError: the file cannot be written, or the URL is malformed.
  """
  repo, revision, file = parse(url)
  path = cached(url)
  if path:
    return path
  info = _info(repo, revision)
  files = [sibling.rfilename for sibling in info.siblings]
  file = file or _weights(files)
  if file not in files:
    held = [name for name in files if name.endswith(_READABLE)]
    raise download.Unavailable(
      (f'it has no {file}' if file else 'no single file of weights in it')
      + '; of .safetensors and .npz it holds '
      + (', '.join(held) or 'none')
    )
  beside = os.path.join(os.path.dirname(file), 'config.json')
  folder = _folder(repo, info.sha)
  path = os.path.join(folder, file)
  for name in dict.fromkeys([beside, file] if beside in files else [file]):
    _fetch_file(repo, info.sha, name, os.path.join(folder, name))
  shards = [
    os.path.join(os.path.dirname(file), name)
    for name in (_shards(path) if _is_index(file) else [])
  ]
  missing = [name for name in shards if name not in files]
  if missing:
    raise download.Unavailable(
      f'its {file} names {missing[0]}, which it has not'
    )
  for name in shards:
    _fetch_file(repo, info.sha, name, os.path.join(folder, name))
  with open(_note(repo, revision), 'w', encoding='utf-8') as note:
    note.write(info.sha)
  return os.path.dirname(path) if shards else path


def _info(repo, revision):
  """What the hub says of a repository: its commit and its files."""
  try:
    import huggingface_hub
  except ImportError as error:
    raise download.Unavailable(
      'needs huggingface_hub: pip install huggingface_hub'
    ) from error
  return _ask(
    lambda: huggingface_hub.HfApi(endpoint=_endpoint()).model_info(
      repo, revision=revision, timeout=_SECONDS
    )
  )


def _fetch_file(repo, commit, file, path):
  """Fetches one file of one commit."""
  import huggingface_hub

  url = huggingface_hub.hf_hub_url(
    repo, file, revision=commit, endpoint=_endpoint()
  )
  said = _ask(
    lambda: huggingface_hub.get_hf_file_metadata(
      url, timeout=_SECONDS, endpoint=_endpoint()
    )
  )
  # Large files lie elsewhere, at an address that is signed and wants no token.
  at_hub = (
    urllib.parse.urlsplit(said.location).netloc
    == urllib.parse.urlsplit(_endpoint()).netloc
  )
  # Of large files the ETag is the SHA-256, of others git's own SHA-1.
  is_sha256 = re.fullmatch('[0-9a-f]{64}', said.etag or '')
  download.fetch(
    said.location,
    path,
    shown=f'hf://{repo}/{file}',
    token=huggingface_hub.get_token() if at_hub else None,
    sha256=said.etag if is_sha256 else None,
  )


def _ask(question):
  """The hub's answer to `question()`."""
  from huggingface_hub import errors

  try:
    return download.within(_SECONDS, question)
  except errors.HfHubHTTPError as error:
    status = error.response.status_code
    raise download.Unavailable(
      {
        401: 'no such repository, or not public (401): log in with '
        '`hf auth login`, or set HF_TOKEN',
        403: 'refused (403): ask for access on its page, and log in with '
        '`hf auth login`, or set HF_TOKEN',
        404: 'not there (404)',
      }.get(status, f'answered {status}')
    ) from error
  except Exception as error:  # of a HTTP library that has changed twice
    raise download.unreached(error) from error
