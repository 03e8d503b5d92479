"""Writes the table of ImageNet classes (see vit_jax/data/imagenet/README.md).

  python scripts/make_imagenet_classes.py WORDNET LIST_OF_21843

WORDNET is the file `data.noun` of WordNet 3.0. LIST_OF_21843 is a file with the
WordNet ids of the published ImageNet-21k heads, one per line. The ids of the
1000 classes are part of TFDS.
"""

import collections
import gzip
import pathlib
import sys

import tensorflow_datasets

OUTPUT = (
  pathlib.Path(__file__).parent.parent
  / 'vit_jax/data/imagenet/imagenet_classes.tsv.gz'
)
IDS_OF_1000 = (
  pathlib.Path(tensorflow_datasets.__file__).parent
  / 'datasets/imagenet2012/labels.txt'
)


def read_nouns(path):
  """Returns {WordNet id: (words, id of the first hypernym or None)}."""
  nouns = {}
  with open(path, encoding='utf-8') as file:
    for line in file:
      if line.startswith(' '):  # the license
        continue
      offset, _, _, num_words, *rest = line.partition(' | ')[0].split()
      end = 2 * int(num_words, 16)  # a number follows each word
      words = [word.replace('_', ' ') for word in rest[:end:2]]
      pointers = rest[end + 1 :]  # symbol, offset, part of speech, source
      above = [
        f'n{pointers[i + 1]}'
        for i in range(0, len(pointers), 4)
        if pointers[i] in ('@', '@i')
      ]
      nouns[f'n{offset}'] = words, above[0] if above else None
  return nouns


def disambiguate(ids, nouns):
  """Returns {WordNet id: '', or a description if several ids share a name}.

  The description is the hypernym's name, or else the id's second word.
  """

  def shared(names):
    times = collections.Counter(name.casefold() for name in names)
    return {
      i
      for i, name in zip(ids, names, strict=True)
      if times[name.casefold()] > 1
    }

  words = {i: nouns[i][0] for i in ids}
  kinds = {i: nouns[nouns[i][1]][0][0] for i in ids}
  ambiguous = shared([words[i][0] for i in ids])
  for i in shared([f'{words[i][0]} ({kinds[i]})' for i in ids]):
    kinds[i] = words[i][1] if len(words[i]) > 1 else kinds[i]
  return {i: kinds[i] if i in ambiguous else '' for i in ids}


def main(wordnet, list_of_21843):
  nouns = read_nouns(wordnet)
  ids_of_1000 = set(IDS_OF_1000.read_text().split())
  ids_of_21843 = set(pathlib.Path(list_of_21843).read_text().split())
  assert len(ids_of_1000) == 1000 and len(ids_of_21843) == 21843
  every = sorted(ids_of_1000 | ids_of_21843)
  kinds = disambiguate(every, nouns)
  lines = []
  for wordnet_id in every:
    lists = '/'.join(
      str(len(ids)) for ids in (ids_of_1000, ids_of_21843) if wordnet_id in ids
    )
    lines.append(
      '\t'.join((wordnet_id, lists, nouns[wordnet_id][0][0], kinds[wordnet_id]))
    )
  with open(OUTPUT, 'wb') as file:
    # Without a time and a file name, equal inputs give equal bytes.
    with gzip.GzipFile('', 'wb', 9, file, mtime=0) as packed:
      packed.write('\n'.join([*lines, '']).encode())


if __name__ == '__main__':
  main(*sys.argv[1:])
