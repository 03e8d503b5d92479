"""Streams a WebDataset: tar files with pairs of an image and a label."""

from collections.abc import Sequence
import glob
import itertools
import os
import re

import numpy as np

from vit_jax import console
from vit_jax.data import class_names
from vit_jax.data import examples
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import class_folders
from vit_jax.data.folders import hold_out
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.data.folders.labels import label_cells
from vit_jax.data.folders.labels import label_columns
from vit_jax.data.folders.labels import label_table
from vit_jax.data.folders.labels import table_listing
from vit_jax.data.streams import shard_index

_SUFFIX = '.tar'
_RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')


def find_shards(dataset: str) -> list[str]:
  """Returns the paths of the tar files of a dataset; [] if it is none.

  Args:
    dataset: a folder with tar files (and no images), one tar file with pairs,
      or a pattern: `train-{0000..0099}.tar`, `{train,val}-*.tar`.

  Raises:
    ValueError: a file of a pattern does not exist.
  """
  name = os.path.expanduser(dataset)
  if os.path.isdir(name):
    start = glob.escape(name)
    found = sorted(glob.glob(f'{start}/*{_SUFFIX}'))
    found = found or sorted(glob.glob(f'{start}/*/*{_SUFFIX}'))
    return [] if found and image_folder.has_image(name) else found
  if not name.endswith(_SUFFIX):
    return []
  if os.path.isfile(name):
    return [name] if _has_pairs(name) else []
  if not re.search(r'[{*?]', name):
    return []
  found = []
  for pattern in _expand(name):
    paths = sorted(glob.glob(pattern))
    if not paths:
      raise ValueError(
        f'config.dataset={dataset!r}: there is no file {pattern}. Correct the '
        'pattern'
      )
    found += paths
  return list(dict.fromkeys(found))


def _expand(pattern):
  """Returns the patterns without braces, such as {0..9} and {train,val}."""
  found = _RANGE.search(pattern)
  if found:
    first, last = found.groups()
    choices = [
      str(number).zfill(len(first))
      for number in range(int(first), int(last) + 1)
    ]
  else:
    found = re.search(r'\{([^{}]*)\}', pattern)
    if not found:
      return [pattern]
    choices = found[1].split(',')
  start, end = pattern[: found.start()], pattern[found.end() :]
  return [name for choice in choices for name in _expand(start + choice + end)]


def _has_pairs(path):
  try:
    return any(example.fields for example in shard_index.list_examples(path))
  except ValueError:
    return False


def part_of_shard(path: str, folder: str) -> str:
  """Returns the part that the name of a tar file means: 'train-01.tar'."""
  names = listing.key_of(path, folder).removesuffix(_SUFFIX).split('/')
  words = [word for name in names for word in re.split(r'[-_.]|(?=\d)', name)]
  return next(filter(None, map(split_names.part_of, words)), '')


def list_images(
  settings: DataSettings, shards: Sequence[str]
) -> tuple[listing.Listing, dict[str, tuple[str, int, int]]]:
  """Returns the images of tar files, with parts and labels.

  Args:
    settings: `DataSettings`.
    shards: paths of the tar files.

  Returns:
    (listing, {path in the listing: (tar file, offset, size)}). The path of an
    image is TAR_FILE/NAME.

  Raises:
    ValueError: the tar files cannot be used for training.
  """
  split_names.check_settings(settings)
  settings.check_unused(
    ('labels', 'file_column'), 'tar files contain the labels of their images'
  )
  folder = os.path.commonpath([os.path.dirname(path) or '.' for path in shards])
  by_shard = shard_index.load(shards, folder)
  found = listing.Listing(folder, {}, (), table=folder)
  places, rows, by_part = {}, {}, {}
  for shard, own in by_shard.items():
    part = part_of_shard(shard, folder)
    for example in own:
      path = f'{shard}/{example.name}'
      if not example.fields and settings.labels != 'none':
        found.skip('images without a label', [path])
        continue
      places[path] = shard, example.offset, example.size
      rows[path] = example.fields
      by_part.setdefault(part, []).append(path)
  if not rows:
    raise ValueError(
      f'{folder}: the tar files have no pairs of an image and a label, such as '
      '0001.jpg and 0001.cls (or .txt, .json). Unpack the archives: '
      f'{shards[0]} is the first one'
    )
  if len(by_part) > 1 and '' in by_part:
    raise ValueError(
      f'{folder}: the names of some tar files have a part, such as train, and '
      f'others do not, such as {by_part[""][0].rpartition("/")[0]}. Rename '
      'them, or give a pattern, such as config.dataset=FOLDER/{train,val}-*.tar'
    )
  if set(by_part) == {''}:
    by_part = {'train': by_part['']}
  if settings.labels == 'none':
    _ignore_labels(found, by_part, settings)
  else:
    _read_labels(found, rows, by_part, settings)
  found.notes.insert(
    0, f'{len(shards)} tar file(s) with {len(rows)} images, which are streamed'
  )
  return found, places


def _ignore_labels(found, by_part, settings):
  """Fills the parts of a listing with images without labels."""
  parts = table_listing.chosen_parts(found, by_part, settings)
  shown = {part: part for part in parts} if len(parts) > 1 else {}
  class_folders.choose_evaluation(found, parts, shown, settings, list)
  for part, paths in parts.items():
    labels = np.zeros((len(paths), 0), np.float32)
    found.parts[part] = listing.Part(list(paths), labels)


def _read_labels(found, rows, by_part, settings):
  """Fills the parts, the class names and the groups of a listing."""
  columns = list(dict.fromkeys(name for row in rows.values() for name in row))
  table = label_table.Table(
    found.folder,
    '',
    ['key', *columns],
    [
      [path, *(label_table.text_of(row.get(name)) for name in columns)]
      for path, row in rows.items()
    ],
  )
  chosen = [name for name in ('cls', 'txt', 'json') if name in columns][:1]
  if settings.label_column or not chosen:
    chosen = label_columns.choose(table, settings).labels
  if not chosen:
    raise ValueError(
      f'{found.folder}: no field of the JSON files has a usual name of labels: '
      f'{", ".join(columns)}. Choose one: config.label_column={columns[0]}'
    )
  labelled = _with_labels(found, rows, chosen, settings.task)
  by_part = {
    part: [path for path in paths if path in labelled]
    for part, paths in by_part.items()
  }
  cells = list(labelled.values())
  names, labels = label_cells.parse(cells, chosen, settings, found.folder)
  if chosen == ['txt'] and len(names) > max(2, len(cells) // 2):
    raise ValueError(
      f'{found.folder}: the .txt files have {len(names)} different texts for '
      f'{len(cells)} images, such as {names[0]!r}, so they are not class '
      'names. Use .cls or .json files with classes'
    )
  names, labels = table_listing.use_class_file(found, names, labels)
  label_of = dict(zip(labelled, labels, strict=True))
  parts = table_listing.chosen_parts(found, by_part, settings)
  shown = {part: part for part in parts} if len(parts) > 1 else {}
  class_folders.choose_evaluation(found, parts, shown, settings, list)
  if settings.group_by in columns:
    groups = table.column(settings.group_by)
    found.groups = dict(zip(rows, groups, strict=True))
  own = {part: {p: label_of[p] for p in paths} for part, paths in parts.items()}
  table_listing.check(found, own, names, settings)
  for part in own:
    array = label_cells.to_array(list(own[part].values()), names, settings.task)
    found.parts[part] = listing.Part(list(own[part]), array)
  found.class_names = class_names.readable(names)


def _with_labels(found, rows, columns, task):
  """Returns {path: cells of the columns}, without images that lack a label."""
  found.notes.append(f'labels are the field {", ".join(columns[:5])}')
  labelled = {}
  for path, row in rows.items():
    cells = tuple(label_table.text_of(row.get(name)) for name in columns)
    is_missing = any(row.get(name) is None for name in columns)
    if is_missing or (task != 'multi_label' and not all(cells)):
      found.skip(f'images without the field {", ".join(columns[:5])}', [path])
    else:
      labelled[path] = cells
  return labelled


def get_sources(
  settings: DataSettings, shards: Sequence[str], part: int, num_parts: int
) -> dict[str, examples.Source]:
  """Returns {split: `examples.Source`}; see `sources.get_sources`."""
  found, places = list_images(settings, shards)
  hold_out.complete(found, settings)
  for line in found.lines():
    console.log_info(line)
  return {
    name: _make_source(found, name, places, part, num_parts)
    for name in found.parts
  }


def _make_source(found, name, places, part, num_parts):
  """Returns the streamed source of one of `num_parts` shards of a part."""
  images = found.parts[name]
  count = len(images.paths)
  if count < num_parts:
    raise ValueError(
      f'{found.folder}: {name} has {count} example(s), which cannot be divided '
      f'between {num_parts} groups of processes. Use fewer processes'
    )
  start, stop = (count * i // num_parts for i in (part, part + 1))
  own = images.take(np.arange(start, stop))
  return examples.Source(
    count,
    found.class_names,
    stream=_make_stream([places[path] for path in own.paths], own.labels),
    share=stop - start,
    fingerprint=found.fingerprint(name),
    labels=images.labels,
    names=tuple(images.paths),
  )


def _make_stream(places, labels):
  """Returns the function `stream` of a `Source`; its images are encoded."""
  # Examples of one tar file are adjacent.
  starts = [
    next(own)[0]
    for _, own in itertools.groupby(enumerate(places), lambda x: x[1][0])
  ]
  stops = tf.constant([*starts[1:], len(places)], tf.int64)
  starts = tf.constant(starts, tf.int64)
  labels = tf.constant(labels)

  def read_bytes(index):
    path, offset, size = places[index]
    with open(path, 'rb') as file:
      file.seek(offset)
      return file.read(size)

  def read(index):
    image = tf.numpy_function(read_bytes, [index], tf.string)
    image.set_shape([])
    return {'image': image, 'label': labels[index]}

  def stream(seed, buffer_size):
    if seed is None:
      return tf.data.Dataset.range(len(places)).map(read)
    count = len(starts)
    order = tf.random.experimental.index_shuffle(
      tf.range(count, dtype=tf.int64), seed, count - 1
    )
    # Interleave sixteen tar files, to mix examples before the shuffle buffer.
    records = tf.data.Dataset.from_tensor_slices(order).interleave(
      lambda i: tf.data.Dataset.range(starts[i], stops[i]),
      cycle_length=16,
      block_length=16,
    )
    shuffle_seed = tf.random.stateless_uniform(
      [], seed, maxval=tf.int64.max, dtype=tf.int64
    )
    return records.map(read, num_parallel_calls=tf.data.AUTOTUNE).shuffle(
      buffer_size, seed=shuffle_seed, reshuffle_each_iteration=False
    )

  return stream
