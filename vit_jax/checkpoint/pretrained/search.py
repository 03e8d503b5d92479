"""Where weights come from: a path, a URL, or a published name alone.

A name is looked for in a folder of files fetched by hand, in the cache, then at
each source in order. What is published, where, and for which model is data, in
`published`; this module knows nothing of models and arrays.
"""

import os
import shlex
import urllib.parse

from vit_jax import console
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.pretrained import augreg
from vit_jax.checkpoint.pretrained import cache
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import hub
from vit_jax.checkpoint.pretrained import registry

_GOOGLE = 'https://storage.googleapis.com'  # gs:// without credentials
_HUB = registry.HUB


def find(name, folder='.', *, model_name=None, sources=registry.SOURCES):
  """The local path of weights, fetched into the cache where needed.

  Args:
    name: a path, of a file or folder; https://…, gs://…, hf://ORG/REPO[/FILE];
      a published name: ViT-B_16, sam/ViT-B_16, R_Ti_16, a file name of AugReg.
      `.npz` may be left out. Also 'model', for the published name that
      `model_name` is, and 'scratch', for none.
    folder: of files fetched by hand, looked in first.
    model_name: architecture to begin training; a published name of another
      one, or of two towers, is refused. None: any.
    sources: see `registry.SOURCES`.

  Returns:
    A path; None for 'scratch'.

  Raises:
    ValueError: no such weights; the message has every place with its answer,
      and the commands to fetch them by hand.
  """
  return _find(name, folder, model_name, sources, fetches=True)[0]


def look(name, folder='.', *, model_name=None, sources=registry.SOURCES):
  """(path or None, places), where `find` would find weights, fetching nothing.

  Arguments and errors are those of `find`. Without a path, the places are those
  that would be asked for the file, in order.
  """
  return _find(name, folder, model_name, sources, fetches=False)


def _find(name, folder, model_name, sources, fetches):
  """(path or None, places not asked)."""
  if name == 'scratch':
    return None, []
  if name == 'model' and model_name is None:
    raise ValueError("weights 'model' are those of a model, which is not named")
  search = _Search(name, model_name, folder, fetches)
  if name == 'model':
    name = model_name
  if name.endswith(npz_names.PICKLES):
    raise ValueError(
      f'{name} is a pickle, which can run any code when it is read: take '
      'weights in .safetensors or .npz'
    )
  if model_name:
    _check_one_tower(name)
  sources = [os.path.expanduser(source) for source in sources]
  if '://' in name:
    path = search.fetch(name)
  else:
    path = search.local(name) or search.published(name, sources)
  if path is None and not search.not_asked:
    raise ValueError(search.failure())
  return path, search.not_asked


class _Search:
  """Places looked in, with their answers; what to try by hand."""

  def __init__(self, name, model_name, folder, fetches):
    self._name = model_name if name == 'model' else name
    self._by_path = name != 'model'
    self._model_name = model_name
    self._folder = os.path.expanduser(folder)
    self._fetches = fetches
    self.not_asked = []  # places to fetch from, where nothing is fetched
    self._tried = []  # (place, answer)
    self._commands = []
    self._unreached = {}  # start of a URL: answer

  def local(self, name):
    """An existing path, or a file in the folder of files fetched by hand."""
    name = os.path.expanduser(name)
    if self._by_path and os.path.isdir(name):
      return os.path.abspath(name)
    stem, suffix = registry.split(name)
    names = [name] if suffix else [f'{stem}.npz', f'{stem}.safetensors']
    if not suffix:  # as `hf download` makes it
      names.append(os.path.join(stem, 'model.safetensors'))
    folders = ['', self._folder] if self._by_path else [self._folder]
    for folder in dict.fromkeys(map(os.path.abspath, folders)):
      for file in names:
        place = os.path.join(folder, file)
        if os.path.isfile(place):
          return os.path.abspath(place)
      self._tried.append((folder, f'no {" or ".join(names)}'))
    return None

  def published(self, name, sources, to=None):
    """A published file, from the cache or the first source that has it.

    Args:
      name: of the file.
      sources: see `registry.SOURCES`.
      to: what `local` will look for, if not `name`.
    """
    what = registry.locate(name)
    if what is None:
      if not os.path.isabs(os.path.expanduser(name)):
        self._tried.append(
          (
            'published files',
            'none has that name; FAMILY/FILE names any of '
            'the families ' + ', '.join(registry.FAMILIES),
          )
        )
      return None
    self._check_model(what)
    to = to or registry.split(name)[0]
    if what.is_augreg_model:
      what = self._choose(what, sources)
      if what is None:
        return None
      to = what.stem
      path = self.local(to)
      if path:
        return path
    urls = [url for source in sources for url in _urls(what, source)]
    for url in urls:
      path = _cached(url)
      if path:
        return path
    for url in urls:
      path = self.fetch(url, to + what.suffix)
      if path:
        return path
    return None

  def _check_model(self, what):
    if (
      self._model_name
      and what.model
      and not registry.may_share(what.model, self._model_name)
    ):
      raise ValueError(
        f'{self._name} is for the model {what.model}, and the model to train '
        f'is {self._model_name}: set config.model.name or config.pretrained'
      )

  def _choose(self, what, sources):
    """AugReg's best file of a model, by its index or as the hub has it."""
    index = self.local('index.csv') or self.published(
      'augreg/index.csv', sources, to='index'
    )
    if index:
      file = augreg.choose(index, what.stem)
      console.log_info(f'{self._name}: the best of AugReg is {file}')
    elif _HUB in sources:
      file = augreg.on_hub(what.stem)
      if self._fetches:
        console.log_info(
          f'{self._name}: the index of AugReg is not to be had, so that the '
          f'best file is not known; taking {file}, of which the hub has a '
          'copy'
        )
    else:
      file = None
    self.not_asked = [
      f'{url}, which names the best file of {what.stem}'
      for url in self.not_asked
    ]
    if not file:
      return None
    return registry.locate(f'augreg/{file}')

  def fetch(self, url, to=None):
    """The path of a URL's file, or None, with the reason noted.

    Args:
      url: of any kind, or a path.
      to: what `local` will look for, once it is fetched by hand.
    """
    if '://' in url and not self._fetches:
      path = _cached(url)
      self.not_asked += [] if path else [url]
      return path
    host = url.partition('://')[2].partition('/')[0]
    start = _HUB if url.startswith(_HUB) else host
    try:
      if start in self._unreached:
        raise download.Unreached(self._unreached[start])
      if url.startswith(_HUB):
        return hub.fetch(url)
      if '://' in url:
        return download.fetch(_https(url))
      if os.path.isfile(url):
        return url
      raise download.Unavailable('no such file')
    except download.Unavailable as error:
      if isinstance(error, download.Unreached):
        self._unreached[start] = str(error)
      self._tried.append((url, str(error)))
      self._commands += _commands(url, to)
      return None

  def failure(self):
    """The message that says what was tried, and what can be."""
    lines = [f'no weights found for {self._name!r}. Looked for:']
    lines += [f'  {place}: {answer}' for place, answer in self._tried]
    if self._commands:
      lines.append('With access to one of them, fetch it by hand:')
      lines += [f'  {command}' for command in self._commands]
    if self._model_name:
      lines.append(
        'Then set config.pretrained_dir to its folder or config.pretrained '
        'to its path, or begin from random weights with '
        '--config.pretrained=scratch'
      )
    return '\n'.join(lines)


def _check_one_tower(name):
  """Raises a ValueError for published weights of images and texts."""
  what = registry.locate(name)
  if what and what.has_two_towers:
    raise ValueError(
      f'config.pretrained={name!r} has two towers, of images and of texts, '
      'and trains no classifier: such weights are for checkpoint.load, and '
      'those of LiT for python -m vit_jax zero_shot'
    )


def _https(url):
  """A gs:// URL as plain HTTPS, other URLs as they are."""
  scheme, _, rest = url.partition('://')
  if scheme == 'gs':
    return f'{_GOOGLE}/{urllib.parse.quote(rest)}'
  if scheme not in ('https', 'http', 'hf'):
    raise ValueError(
      f'{url}: weights come from a path, https://, gs:// or hf://'
    )
  return url


def _urls(what, source):
  """Where a published file may be at one source."""
  if source == _HUB:
    return [_HUB + repository for repository in what.hub]
  path = what.path
  if source.startswith('http'):
    path = urllib.parse.quote(path)
  return [f'{source.rstrip("/")}/{path}']


def _cached(url):
  """The path of what was fetched from `url` before, else None."""
  if url.startswith('hf://'):
    return hub.cached(url)
  path = cache.path_for(_https(url)) if '://' in url else url
  return path if os.path.isfile(path) else None


def _commands(url, to):
  """Shell commands that fetch what was not to be had at `url` into `to`."""
  if url.startswith(_HUB):
    repository, revision, file = hub.parse(url)
    to = registry.split(to)[0] if to else repository.rpartition('/')[2]
    command = ['hf', 'download', repository, *([file] if file else [])]
    if revision != 'main':
      command += ['--revision', revision]
    return [shlex.join([*command, '--local-dir', to])]
  if '://' not in url:
    return []
  url = _https(url)
  path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
  to = to or os.path.basename(path)
  commands = [['curl', '-fL', '--create-dirs', '-o', to, url]]
  if url.startswith(f'{_GOOGLE}/'):
    commands.insert(0, ['gcloud', 'storage', 'cp', f'gs:/{path}', to])
  return [shlex.join(command) for command in commands]
