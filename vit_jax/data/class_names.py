"""Names of the classes that published ImageNet heads tell apart.

A name is WordNet's first word for the class. Classes of the same name get in
brackets what they are a kind of, 'crane (wading bird)' and 'crane (lifting
device)'; where that is the same too, another of their words, 'robin
(redbreast)', or the WordNet id.
"""

import collections
import functools
import gzip
import os

_FILE = os.path.join(
  os.path.dirname(__file__), 'imagenet/imagenet_classes.tsv.gz'
)


@functools.cache
def _table():
  """{number of classes: [(WordNet id, name, kind or '')]}, sorted by id."""
  table = collections.defaultdict(list)
  with gzip.open(_FILE, 'rt', encoding='utf-8') as file:
    for line in file:
      wordnet_id, lists, name, kind = line.rstrip('\n').split('\t')
      for num_classes in lists.split('/'):
        table[int(num_classes)].append((wordnet_id, name, kind))
  return dict(table)


def imagenet_ids(num_classes: int) -> tuple[str, ...] | None:
  """WordNet ids ('n02123045') of a published head, in the order of its logits.

  Args:
    num_classes: 1000 of ILSVRC-2012, or 21843 of ImageNet-21k. Both orders are
      that of the ids. The 21843 are the 21841 of ImageNet's last full release
      and two that it had dropped, n03931044 (picture) and n09859684 (bleacher).

  Returns:
    A tuple; None for any other number.
  """
  rows = _table().get(num_classes)
  return rows and tuple(wordnet_id for wordnet_id, _, _ in rows)


def imagenet(num_classes: int) -> tuple[str, ...] | None:
  """Names ('tabby') of the classes of `imagenet_ids`, each one different."""
  rows = _table().get(num_classes)
  return rows and tuple(_distinct(rows))


def _distinct(rows):
  """The names in `rows`, with in brackets what tells equal ones apart."""
  names = [name for _, name, _ in rows]
  for bracketed in (
    [f'{name} ({kind})' for _, name, kind in rows],
    [f'{name} ({wordnet_id})' for wordnet_id, name, _ in rows],
  ):
    # Case does not tell: 'turkey' and 'Turkey' are one to many tokenizers.
    times = collections.Counter(name.casefold() for name in names)
    names = [
      bracketed[i] if times[name.casefold()] > 1 else name
      for i, name in enumerate(names)
    ]
  return names
