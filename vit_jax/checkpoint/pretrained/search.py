"""Finds weights by a path, a URL or the name of a published file.

A name is searched in the folder of files that were downloaded by hand, then in
the cache, then at each source in order. `registry` lists the published files
and their models. This module uses no models and no arrays.
"""

from collections.abc import Sequence
import os

from vit_jax import console
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.pretrained import addresses
from vit_jax.checkpoint.pretrained import augreg
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import registry


def find(
  name: str,
  folder: str = '.',
  *,
  model_name: str | None = None,
  sources: Sequence[str] = registry.SOURCES,
) -> str | None:
  """Returns the local path of weights, downloaded if needed.

  Args:
    name: one of
      - a path of a file or folder;
      - a URL: https://…, gs://…, hf://ORG/REPO[/FILE];
      - a published name: ViT-B_16, sam/ViT-B_16, R_Ti_16, a file of AugReg. The
        suffix `.npz` is optional;
      - 'model': `model_name` is the published name;
      - 'scratch': no weights.
    folder: folder of files that were downloaded by hand; it is searched first.
    model_name: architecture that these weights initialize. Published weights of
      another architecture, or with two towers, are rejected. None: any.
    sources: see `registry.SOURCES`.

  Returns:
    A path; None for 'scratch'.

  Raises:
    ValueError: the weights were not found. The message lists every place with
      its answer, and the commands for a download by hand.
  """
  return _find(name, folder, model_name, sources, fetches=True)[0]


def look(
  name: str,
  folder: str = '.',
  *,
  model_name: str | None = None,
  sources: Sequence[str] = registry.SOURCES,
) -> tuple[str | None, list[str]]:
  """Returns (path or None, places) like `find`, without a download.

  Arguments and errors are those of `find`. If the path is None, the places are
  the addresses from which `find` would try to download, in order.
  """
  return _find(name, folder, model_name, sources, fetches=False)


def _find(name, folder, model_name, sources, fetches):
  """Returns (path or None, places that were not tried)."""
  if name == 'scratch':
    return None, []
  if name == 'model' and model_name is None:
    raise ValueError("The weights 'model' need a model. Use model_name=…")
  search = _Search(name, model_name, folder, fetches)
  if name == 'model':
    name = model_name
  if name.endswith(npz_names.PICKLES):
    raise npz_names.pickle_error(name)
  if model_name:
    _check_one_tower(name)
  if addresses.is_url(name):
    path = search.fetch(name)
  else:
    sources = [os.path.expanduser(source) for source in sources]
    path = search.local(name) or search.published(name, sources)
  if path is None and not search.not_asked:
    raise ValueError(search.failure())
  return path, search.not_asked


def is_published(name: str) -> bool:
  """Returns whether this is the name of a published file of the original code.

  Then the Hub may have a copy of it, with names of timm or Hugging Face.
  """
  return not addresses.is_url(name) and registry.locate(name) is not None


class _Search:
  """One search: the places that were tried, their answers, and advice."""

  def __init__(self, name, model_name, folder, fetches):
    self._name = model_name if name == 'model' else name
    self._by_path = name != 'model'
    self._model_name = model_name
    self._folder = os.path.expanduser(folder)
    self._fetches = fetches
    self.not_asked = []  # Places from which `find` would download.
    self._tried = []  # [(place, answer)]
    self._commands = []
    self._unreached = {}  # {host: error}

  def local(self, name):
    """Returns an existing path, or a path in the folder of downloads."""
    name = os.path.expanduser(name)
    if self._by_path and os.path.isdir(name):
      return os.path.abspath(name)
    stem, suffix = registry.split(name)
    names = [name] if suffix else [f'{stem}.npz', f'{stem}.safetensors']
    if not suffix:  # `hf download` creates such folders.
      names.append(os.path.join(stem, 'model.safetensors'))
    folders = ['', self._folder] if self._by_path else [self._folder]
    for folder in dict.fromkeys(map(os.path.abspath, folders)):
      for file in names:
        path = os.path.join(folder, file)
        if os.path.isfile(path):
          return os.path.abspath(path)
      self._tried.append((folder, f'no {" or ".join(names)}'))
    return None

  def published(self, name, sources, to=None):
    """Returns the path of a published file, cached or downloaded, or None.

    Args:
      name: name of the file.
      sources: see `registry.SOURCES`.
      to: name that `local` searches for, if it is not `name`.
    """
    what = registry.locate(name)
    if what is None:
      if not os.path.isabs(os.path.expanduser(name)):
        families = ', '.join(registry.FAMILIES)
        answer = (
          'no file has this name. Use FAMILY/FILE with one of the families '
          f'{families}'
        )
        self._tried.append(('published files', answer))
      return None
    self._check_model(what)
    to = to or registry.split(name)[0]
    if what.is_augreg_model:
      file = self._best_of_augreg(what.stem, sources)
      if file is None:
        return None
      what, to = registry.locate(f'augreg/{file}'), file
      path = self.local(file)
      if path:
        return path
    places = [
      place for source in sources for place in addresses.published(what, source)
    ]
    for place in places:
      path = addresses.cached(place)
      if path:  # The configs may be missing.
        return self.fetch(place) or path
    for place in places:
      path = self.fetch(place, to + what.suffix)
      if path:
        return path
    return None

  def _check_model(self, what):
    """Raises ValueError for a published file of another architecture."""
    if (
      self._model_name
      and what.model
      and not registry.may_share(what.model, self._model_name)
    ):
      raise ValueError(
        f'{self._name} has weights of {what.model}, which do not match the '
        f'model {self._model_name}. Use config.model.name={what.model}, or '
        'other weights.'
      )

  def _best_of_augreg(self, model, sources):
    """Returns the name of AugReg's best file of a model, or None.

    Without AugReg's index, this is the file that timm mirrors on the Hub.
    """
    index = self.local('index.csv') or self.published(
      'augreg/index.csv', sources, to='index'
    )
    self.not_asked = [
      f'{place}, which lists the best file of {model}'
      for place in self.not_asked
    ]
    if index:
      file = augreg.choose(index, model)
      console.log_info(f'{self._name}: the best file of AugReg is {file}')
      return file
    if registry.HUB not in sources:
      return None
    file = augreg.on_hub(model)
    if self._fetches:
      console.log_info(
        f'{self._name}: the index of AugReg is not available, so the best '
        f'file is unknown. Using {file}, which timm mirrors on the Hub.'
      )
    return file

  def fetch(self, address, to=None):
    """Returns the path of an address's file, or records why there is none.

    Args:
      address: path or URL.
      to: name that `local` searches for, if the file is downloaded by hand.
    """
    if addresses.is_url(address) and not self._fetches:
      path = addresses.cached(address)
      self.not_asked += [] if path else [address]
      return path
    host = addresses.host(address)
    try:
      if host in self._unreached:  # Do not wait for a timeout again.
        raise self._unreached[host]
      return addresses.fetch(address)
    except download.Unavailable as error:
      if isinstance(error, download.Unreached):
        self._unreached[host] = error
      self._tried.append((address, str(error)))
      self._commands += addresses.commands(address, to)
      return None

  def failure(self):
    """Returns a message with the places that were tried, and advice."""
    lines = [f'no weights found for {self._name!r}. These places were tried:']
    lines += [f'  {place}: {answer}' for place, answer in self._tried]
    if self._commands:
      lines.append(
        'If you have access to one of them, download the file by hand:'
      )
      lines += [f'  {command}' for command in self._commands]
    if self._model_name:
      lines.append(
        'If you have the file, set config.pretrained_dir to its folder, or '
        'config.pretrained to its path. To use a model that you have trained, '
        'set config.pretrained to its run folder. To start from random '
        'parameters, use config.pretrained=scratch'
      )
    return '\n'.join(lines)


def _check_one_tower(name):
  """Raises ValueError for published weights with an image and a text tower."""
  what = registry.locate(name)
  if what and what.has_two_towers:
    raise ValueError(
      f'config.pretrained={name!r} has an image tower and a text tower, so it '
      'cannot initialize a classifier. Load such weights with checkpoint.load, '
      'or use the commands zero_shot and evaluate for LiT.'
    )
