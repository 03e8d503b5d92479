"""Class names of the published ImageNet heads.

A name is WordNet's first word for the class. Equal names get an addition in
brackets. The first choice is the kind of thing: 'crane (wading bird)' and
'crane (lifting device)'. If the kinds are equal too, the addition is a second
word for the class, as in 'robin (redbreast)', or the WordNet id.
"""

import collections
from collections.abc import Sequence
import functools
import gzip
import os
import re

_FILE = os.path.join(
  os.path.dirname(__file__), 'imagenet/imagenet_classes.tsv.gz'
)


@functools.cache
def _table():
  """Returns {num_classes: [(WordNet id, name, kind or '')]}, sorted by id."""
  table = collections.defaultdict(list)
  with gzip.open(_FILE, 'rt', encoding='utf-8') as file:
    for line in file:
      wordnet_id, lists, name, kind = line.rstrip('\n').split('\t')
      for num_classes in lists.split('/'):
        table[int(num_classes)].append((wordnet_id, name, kind))
  return dict(table)


def imagenet_ids(num_classes: int) -> tuple[str, ...] | None:
  """Returns the WordNet ids of a published head, in the order of its logits.

  Args:
    num_classes: 1000 (ILSVRC-2012) or 21843 (ImageNet-21k). Both heads order
      their classes by id. The 21843 classes are the 21841 classes of
      ImageNet's last full release, and two classes that this release had
      removed: n03931044 (picture) and n09859684 (bleacher).

  Returns:
    A tuple of ids such as 'n02123045', or None for any other number.
  """
  rows = _table().get(num_classes)
  return rows and tuple(wordnet_id for wordnet_id, _, _ in rows)


def imagenet(num_classes: int) -> tuple[str, ...] | None:
  """Returns a unique name, such as 'tabby', for each id of `imagenet_ids`."""
  rows = _table().get(num_classes)
  return rows and tuple(_distinct(rows))


def mirrored(names: Sequence[str]) -> list[str]:
  """Returns the class names that a mirrored image may not belong to.

  These are single characters and numbers, if they are at least half of the
  names, and names with the words left and right.
  """
  characters = [
    name for name in names if len(name) == 1 or re.fullmatch(r'\d+', name)
  ]
  if 2 * len(characters) < len(names):
    characters = []
  sides = [
    name
    for name in names
    if {'left', 'right'} & set(re.split(r'[^a-z]+', name.lower()))
  ]
  return characters + sides


def readable(names: Sequence[str]) -> tuple[str, ...]:
  """Returns class names in place of WordNet ids.

  Args:
    names: WordNet ids such as 'n02123045', in any order, also of some classes
      only. If one name is not the id of an ImageNet class, all are kept.
  """
  if not names or not all(re.fullmatch(r'n\d{8}', name) for name in names):
    return tuple(names)
  for num_classes in (1000, 21843):
    known = dict(
      zip(imagenet_ids(num_classes), imagenet(num_classes), strict=True)
    )
    if known.keys() >= set(names):
      return tuple(known[name] for name in names)
  return tuple(names)


def _distinct(rows):
  """Returns the names in `rows`; equal names get an addition in brackets."""
  names = [name for _, name, _ in rows]
  for bracketed in (
    [f'{name} ({kind})' for _, name, kind in rows],
    [f'{name} ({wordnet_id})' for wordnet_id, name, _ in rows],
  ):
    # Many tokenizers ignore case, so 'turkey' and 'Turkey' count as equal.
    times = collections.Counter(name.casefold() for name in names)
    names = [
      bracketed[i] if times[name.casefold()] > 1 else name
      for i, name in enumerate(names)
    ]
  return names
