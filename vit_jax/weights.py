"""Where published weights come from: a path, or a name in a folder."""

import os


def find(pretrained, model_name, pretrained_dir):
  """The path of the weights to begin with, or None for a random start.

  Args:
    pretrained: 'model' for the published file of `model_name`, 'scratch' for
      none, else a path or a file name in `pretrained_dir`; `.npz` may be left
      out.
    model_name: full name of the architecture.
    pretrained_dir: folder of downloaded files.

  Raises:
    ValueError: no such file; the message names every place looked in.
  """
  if pretrained == 'scratch':
    return None
  name = model_name if pretrained == 'model' else os.path.expanduser(pretrained)
  file_name = name if name.endswith('.npz') else f'{name}.npz'
  places = [os.path.join(os.path.expanduser(pretrained_dir), file_name)]
  if pretrained != 'model':
    places = [file_name, *places]
  places = list(dict.fromkeys(map(os.path.abspath, places)))
  for place in places:
    if os.path.isfile(place):
      return place
  raise ValueError(
      f'no weights found for {name!r}. Looked for: ' + ', '.join(places)
      + '. Put the file there, set config.pretrained_dir to its folder or '
      'config.pretrained to its path, or begin from random weights with '
      '--config.pretrained=scratch')
