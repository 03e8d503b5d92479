"""Finds weights: by a path, a URL, or only the name of a published file.

A name is looked for in the folder of files downloaded by hand, in the cache,
then at each source in order. `registry` lists what is published, where, and for
which model; this module knows nothing of models and arrays.
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
  """Returns the local path of weights, downloaded if they are not there.

  Args:
    name: a path, of a file or folder; https://…, gs://…, hf://ORG/REPO[/FILE];
      a published name: ViT-B_16, sam/ViT-B_16, R_Ti_16, a file name of AugReg.
      `.npz` may be left out. Also 'model', for the published name that
      `model_name` is, and 'scratch', for none.
    folder: of files downloaded by hand, where names are looked for first.
    model_name: architecture that these weights initialize; a published name of
      another one, or of two towers, is refused. None: any.
    sources: see `registry.SOURCES`.

  Returns:
    A path; None for 'scratch'.

  Raises:
    ValueError: no such weights; the message has every place with its answer,
      and the commands to download them by hand.
  """
  return _find(name, folder, model_name, sources, fetches=True)[0]


def look(
  name: str,
  folder: str = '.',
  *,
  model_name: str | None = None,
  sources: Sequence[str] = registry.SOURCES,
) -> tuple[str | None, list[str]]:
  """Returns (path or None, places) of `find`, and downloads nothing.

  Arguments and errors are those of `find`. Without a path, the places are those
  that `find` would ask for the file, in order.
  """
  return _find(name, folder, model_name, sources, fetches=False)


def _find(name, folder, model_name, sources, fetches):
  """Returns (path or None, places that were not asked)."""
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
  if addresses.is_url(name):
    path = search.fetch(name)
  else:
    sources = [os.path.expanduser(source) for source in sources]
    path = search.local(name) or search.published(name, sources)
  if path is None and not search.not_asked:
    raise ValueError(search.failure())
  return path, search.not_asked


class _Search:
  """One search: the places that were asked, their answers, what to do next."""

  def __init__(self, name, model_name, folder, fetches):
    self._name = model_name if name == 'model' else name
    self._by_path = name != 'model'
    self._model_name = model_name
    self._folder = os.path.expanduser(folder)
    self._fetches = fetches
    self.not_asked = []  # places to download from, if nothing is downloaded
    self._tried = []  # (place, answer)
    self._commands = []
    self._unreached = {}  # host: the error

  def local(self, name):
    """Returns an existing path, or one in the folder of downloads by hand."""
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
        path = os.path.join(folder, file)
        if os.path.isfile(path):
          return os.path.abspath(path)
      self._tried.append((folder, f'no {" or ".join(names)}'))
    return None

  def published(self, name, sources, to=None):
    """Returns a published file, from the cache or the first source that has it.

    Args:
      name: of the file.
      sources: see `registry.SOURCES`.
      to: name that `local` looks for, if it is not `name`.
    """
    what = registry.locate(name)
    if what is None:
      if not os.path.isabs(os.path.expanduser(name)):
        families = ', '.join(registry.FAMILIES)
        answer = (
          'none has that name; FAMILY/FILE names any of the families '
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
      if path:
        return path
    for place in places:
      path = self.fetch(place, to + what.suffix)
      if path:
        return path
    return None

  def _check_model(self, what):
    """Refuses a published file of another architecture."""
    if (
      self._model_name
      and what.model
      and not registry.may_share(what.model, self._model_name)
    ):
      raise ValueError(
        f'{self._name} is for the model {what.model}, and the model to train '
        f'is {self._model_name}: set config.model.name or config.pretrained'
      )

  def _best_of_augreg(self, model, sources):
    """Returns the name of AugReg's best file of a model, or None.

    Without AugReg's index it is the file that timm mirrors on the Hub.
    """
    index = self.local('index.csv') or self.published(
      'augreg/index.csv', sources, to='index'
    )
    self.not_asked = [
      f'{place}, which names the best file of {model}'
      for place in self.not_asked
    ]
    if index:
      file = augreg.choose(index, model)
      console.log_info(f'{self._name}: the best of AugReg is {file}')
      return file
    if registry.HUB not in sources:
      return None
    file = augreg.on_hub(model)
    if self._fetches:
      console.log_info(
        f'{self._name}: the index of AugReg is not available, so the best '
        f'file is not known; taking {file}, of which the Hub has a copy'
      )
    return file

  def fetch(self, address, to=None):
    """Returns the path of an address's file, or None and notes the answer.

    Args:
      address: of any kind.
      to: name that `local` looks for, once the file is downloaded by hand.
    """
    if addresses.is_url(address) and not self._fetches:
      path = addresses.cached(address)
      self.not_asked += [] if path else [address]
      return path
    host = addresses.host(address)
    try:
      if host in self._unreached:  # asking again would take as long
        raise self._unreached[host]
      return addresses.fetch(address)
    except download.Unavailable as error:
      if isinstance(error, download.Unreached):
        self._unreached[host] = error
      self._tried.append((address, str(error)))
      self._commands += addresses.commands(address, to)
      return None

  def failure(self):
    """Returns the message that says what was tried, and what to do."""
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
