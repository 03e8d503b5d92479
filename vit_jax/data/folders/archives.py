"""Explains names of datasets that are not folders: archives, URLs, files."""

import os
import re
import shlex

_UNPACK = {
  ('.zip',): 'python -m zipfile -e {file} {folder}',
  ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tbz2', '.txz'): (
    'mkdir {folder} && tar -xf {file} -C {folder}'
  ),
  ('.7z',): '7z x {file} -o{folder}',
  ('.rar',): 'unrar x {file} {folder}/',
}
_COPY = {
  'gs': 'gcloud storage cp -r {name} .',
  's3': 'aws s3 cp --recursive {name} {folder}',
  'hf': 'hf download {repository} --repo-type=dataset --local-dir={folder}',
}


def check_not_a_file(name: str) -> None:
  """Raises ValueError if a name is no folder, but looks like a path or a URL.

  Args:
    name: value of `config.dataset`, which is not the path of a folder.
  """
  start = f'config.dataset={name!r}'
  scheme = re.match(r'(\w+)://', name)
  if scheme:
    raise ValueError(f'{start}: {_explain_url(name, scheme[1])}')
  path = os.path.expanduser(name)
  if os.path.isfile(path):
    raise ValueError(f'{start} is {_explain_file(path)}')
  if os.path.isabs(path) or name.startswith(('.', '~')):
    raise ValueError(
      f'{start}: no such folder. Use the path of a folder of images, or the '
      'name of a dataset.'
    )
  if name.count('/') > 2 or name.endswith(('/', '.tar', '.zip')):
    raise ValueError(
      f'{start}: no such folder in {os.getcwd()}. Use the path of a folder of '
      'images, or the name of a dataset.'
    )


def unpack_command(path: str) -> str | None:
  """Returns the command that unpacks an archive; None for another file."""
  lower = path.lower()
  for suffixes, command in _UNPACK.items():
    for suffix in suffixes:
      if lower.endswith(suffix):
        folder = path[: -len(suffix)] or 'photos'
        return command.format(
          file=shlex.quote(path), folder=shlex.quote(folder)
        )
  return None


def _explain_file(path):
  command = unpack_command(path)
  if command:
    folder = command.split()[-1]
    return (
      f'an archive, but images are read from a folder. Unpack it: {command} '
      f'Then use the new folder as config.dataset'
    )
  if path.lower().endswith(('.csv', '.tsv', '.jsonl', '.parquet', '.txt')):
    folder = os.path.dirname(path) or '.'
    return (
      'a table, not a folder. Use the folder of the images, and give the table '
      f'as config.labels: config.dataset={folder} config.labels={path}'
    )
  return 'a file, not a folder. Use the path of a folder of images.'


def _explain_url(name, scheme):
  folder = name.rstrip('/').rpartition('/')[2]
  repository = name.partition('://')[2].removeprefix('datasets/')
  command = _COPY.get(scheme, '').format(
    name=name, folder=folder, repository=repository
  )
  return (
    'images are read from a local disk, not from a URL. Copy them first'
    + (f': {command} ' if command else '. ')
    + 'Then use the path of the folder'
  )
