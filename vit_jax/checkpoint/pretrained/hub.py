"""Weights from the Hugging Face Hub: hf://ORG/REPO[@REVISION][/FILE].

huggingface_hub downloads the files into its own cache, which timm and
transformers also use. HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE and `hf auth login` have their usual meaning.

All files of one download come from one commit, so a push between two files
cannot mix two versions.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import urllib.parse

from vit_jax import console
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.pretrained import download
from vit_jax.files import json_files

_SECONDS = 15  # Timeout for a question about a repository.
_READABLE = ('.safetensors', '.npz')
_CONFIGS = ('config.json', 'preprocessor_config.json')
_REFUSALS = {
  401: 'the repository does not exist or is private (401): log in with '
  '`hf auth login`, or set HF_TOKEN',
  403: 'access denied (403): accept its license on its page at '
  'https://huggingface.co, and give your token with `hf auth login`, or set '
  'HF_TOKEN',
  404: 'not found (404)',
}


def parse(url: str) -> tuple[str, str, str]:
  """Returns (repository, revision, file or '') of a URL.

  Raises:
    ValueError: the URL is malformed.
  """
  match = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?', url)
  if not match:
    raise ValueError(
      f'{url} does not have the form hf://ORG/REPO[@REVISION][/FILE].'
    )
  repo, revision, file = match.groups(default='')
  return repo, urllib.parse.unquote(revision) or 'main', file


def cached(url: str) -> str | None:
  """Returns the path of a URL's weights in the cache, or None.

  If the URL contains no file, only `model.safetensors` and its shards are found
  in the cache. Only the Hub can list the other files of the repository.
  """
  repo, revision, file = parse(url)
  for name in [file] if file else ['model.safetensors', npz_names.SHARDS]:
    path = _cached_file(repo, revision, name)
    if path and _is_index(name):
      shards = [
        _cached_file(repo, revision, shard) for shard in _shards(path, name)
      ]
      path = os.path.dirname(path) if all(shards) else None
    if path:
      return path
  return None


def fetch(url: str) -> str:
  """Returns the path of a URL's weights; downloads files that are not cached.

  If the URL contains no file, the weights are `model.safetensors`, its shards,
  or the only .safetensors or .npz file. For shards, the path is their folder.
  The configs of the repository are stored next to the weights. They contain the
  architecture, the classes, and how images are prepared.

  Raises:
    download.Unavailable: contains the Hub's answer.
    ValueError: the file cannot be written, or the URL is malformed.
  """
  repo, revision, file = parse(url)
  path = cached(url)
  if path:
    _complete(repo, path)
    return path
  commit = _Commit(repo, revision)
  file = file or commit.only_weights()
  configs = [os.path.join(os.path.dirname(file), name) for name in _CONFIGS]
  commit.fetch_existing(configs)
  path = commit.fetch(file)
  _note_absent(path, [name for name in configs if name not in commit.files])
  if not _is_index(file):
    return path
  for shard in _shards(path, file):
    commit.fetch(shard)
  return os.path.dirname(path)


def _complete(repo, path):
  """Downloads missing configs of weights that another library cached.

  Args:
    repo: name of the repository.
    path: path of the weights in the cache.
  """
  if path.endswith('.npz'):  # it has no config
    return
  _, commit, folder = _split(path)
  config, preprocessor = (os.path.join(folder, name) for name in _CONFIGS)
  names = [config]
  if _needs_preprocessor(repo, config, commit):
    names.append(preprocessor)
  missing = [name for name in names if _known_file(repo, commit, name) is None]
  if not missing:
    return
  try:
    found = _Commit(repo, commit)
    found.fetch_existing(missing)
  except download.Unavailable as error:
    console.log_info(
      f'warning: hf://{repo} is in the cache without '
      f'{" and ".join(missing)}, and the Hub did not send them: {error}'
    )
    return
  _note_absent(path, [name for name in missing if name not in found.files])


def _needs_preprocessor(repo, config, commit):
  """Returns whether a config is of transformers, or not in the cache."""
  path = _cached_file(repo, commit, config)
  if path is None:
    return _known_file(repo, commit, config) is None
  with contextlib.suppress(ValueError, OSError):  # loading reports damage
    return 'model_type' in (json_files.read_json(path, dict) or {})
  return False


def _split(path):
  """Returns (folder of the repository, commit, folder in it) of a path."""
  storage, _, rest = path.rpartition(f'{os.sep}snapshots{os.sep}')
  commit, _, file = rest.partition(os.sep)
  is_folder = os.path.isdir(path)
  return storage, commit, file if is_folder else os.path.dirname(file)


def _note_absent(path, names):
  """Notes in the cache, as huggingface_hub does, that files do not exist.

  Args:
    path: path of a file of the same commit in the cache.
    names: names of the files in the repository.
  """
  storage, commit, _ = _split(path)
  for name in names:
    note = pathlib.Path(storage, '.no_exist', commit, name)
    with contextlib.suppress(OSError):  # such as a cache that is read-only
      note.parent.mkdir(parents=True, exist_ok=True)
      note.touch()


class _Commit:
  """The files of one commit of a repository."""

  def __init__(self, repo, revision):
    import huggingface_hub

    def ask():
      # This call also stores the commit of the revision in the cache.
      commit = api.resolve_revision(repo, revision=revision).resolved
      return api.model_info(
        repo, revision=commit, files_metadata=True, timeout=_SECONDS
      )

    endpoint = os.environ.get('HF_ENDPOINT', '').rstrip('/')
    self._api = api = huggingface_hub.HfApi(endpoint=endpoint or None)
    with _errors_explained():
      info = download.within(_SECONDS, ask)
      self.files = {file.rfilename: file for file in info.siblings}
    self._repo = repo
    self._commit = info.sha

  def only_weights(self):
    """Returns the name of the weights file, if there is only one candidate."""
    for name in ('model.safetensors', npz_names.SHARDS):
      if name in self.files:
        return name
    readable = self._readable()
    if len(readable) == 1:
      return readable[0]
    raise self._without('no weights file, or several')

  def fetch_existing(self, names):
    """Downloads those of some files that the commit has."""
    for name in names:
      if name in self.files:
        self.fetch(name)

  def fetch(self, name):
    """Returns the path of a file, downloaded if it is not cached."""
    if name not in self.files:
      raise self._without(f'no {name}')
    path = _cached_file(self._repo, self._commit, name)
    if path:
      return path
    file = self.files[name]
    size = f' ({console.file_size(file.size)})' if file.size else ''
    console.log_info(f'downloading hf://{self._repo}/{name}{size}')
    with _errors_explained():
      path = self._api.hf_hub_download(
        self._repo, name, revision=self._commit, tqdm_class=console.Bar
      )
    if file.lfs:
      _check_sha256(path, file.lfs.sha256)
    return path

  def _readable(self):
    return [name for name in self.files if name.endswith(_READABLE)]

  def _without(self, missing):
    """Returns the `Unavailable` for a repository without a needed file."""
    existing = ', '.join(self._readable()) or 'none'
    return download.Unavailable(
      f'it has {missing}; the files that hf://ORG/REPO/FILE can select are: '
      f'{existing}'
    )


def _cached_file(repo, revision, name):
  """Returns the path of one file in the cache, or None."""
  path = _known_file(repo, revision, name)
  return path if isinstance(path, str) else None


def _known_file(repo, revision, name):
  """Returns a path; None if it is not cached; an object if it is absent."""
  import huggingface_hub

  return huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)


def _is_index(name):
  """Returns whether a file is an index of shards."""
  return os.path.basename(name) == npz_names.SHARDS


def _shards(path, name):
  """Returns the names of the shards that an index lists.

  Args:
    path: local path of the index.
    name: name of the index in its repository.
  """
  try:
    shards = npz_names.read_shards(path)
  except ValueError as error:
    raise download.Unavailable(str(error)) from error
  return [os.path.join(os.path.dirname(name), shard) for shard in shards]


def _check_sha256(path, expected):
  """Removes a damaged file, because huggingface_hub compares only sizes."""
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != expected:
    os.remove(os.path.realpath(path))  # `path` is a link to the file.
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    raise download.Unavailable(
      f'damaged: its SHA-256 is {found}, but the Hub sent {expected}'
    )


@contextlib.contextmanager
def _errors_explained():
  """Converts errors of huggingface_hub to the errors of `fetch`."""
  from huggingface_hub import errors

  try:
    yield
  except errors.HFValidationError:  # The repository name is malformed.
    raise
  except (
    errors.LocalEntryNotFoundError,
    errors.RevisionResolutionError,
  ) as error:  # The cause is the reason why the Hub did not answer.
    raise _explained(error.__cause__ or error, errors) from error
  except Exception as error:  # Also errors of hf_xet, json and others.
    raise _explained(error, errors) from error


def _explained(error, errors):
  """Returns the exception of `fetch` that explains `error`."""
  if isinstance(error, errors.HfHubHTTPError):
    status = error.response.status_code
    reason = error.server_message or error.response.reason_phrase
    return download.Unavailable(
      _REFUSALS.get(status) or f'answered {status} ({reason})'
    )
  if isinstance(
    error, (errors.HTTPError, errors.OfflineModeIsEnabled, TimeoutError)
  ):
    return download.unreached(error)
  if isinstance(error, OSError) and error.errno:
    return ValueError(
      f'{error.filename or "the cache of the Hub"} cannot be written: '
      f'{error.strerror}. Free disk space, or set HF_HUB_CACHE to another '
      'folder.'
    )
  # The file was truncated, or the answer does not come from the Hub.
  return download.Unavailable(f'no usable answer ({error!r})')
