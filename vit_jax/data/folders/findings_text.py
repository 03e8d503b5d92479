"""Lines about the content of a folder, for `check` and the start of a run."""

from collections.abc import Iterator

from vit_jax.data.folders import findings
from vit_jax.data.folders import listing

_SHOWN_CLASSES = 20
_IMBALANCE = 5  # ratio of the largest class to the smallest one


def page(found: findings.Findings, size: int) -> Iterator[str]:
  """Yields the lines of the command `check`.

  Args:
    found: content of a folder.
    size: side of the model's images in pixels.
  """
  yield from found.notes
  images = ', '.join(f'{n} {name}' for name, n in found.num_images.items())
  yield f'images: {images}'
  yield from _class_table(found.counts)
  yield f'kinds of files: {_kinds(found)}'
  yield from _size_lines(found.sizes, size)
  for reason, paths in found.skipped.items():
    yield f'skipped: {reason}: {listing.some(paths, found.folder)}'
  yield _groups_line(found.equal, 'files with the same content')
  if found.near is not None:
    yield _groups_line(found.near, 'pictures that are almost equal')
  yield from warnings(found)
  yield from _majority(found)


def summary(found: findings.Findings) -> Iterator[str]:
  """Yields the lines at the start of a run."""
  smallest, largest = (
    '{} x {}'.format(*found.sizes[index(found.sizes.prod(1))])
    for index in (lambda areas: areas.argmin(), lambda areas: areas.argmax())
  )
  sizes = smallest if smallest == largest else f'{smallest} to {largest}'
  yield '; '.join(
    [f'{found.folder}: {_kinds(found)}, {sizes} pixels', *_majority(found)]
  )
  yield from warnings(found)


def warnings(found: findings.Findings) -> Iterator[str]:
  """Yields a line for each thing that makes a result worse or wrong."""
  yield from _imbalance(found.counts)
  for groups, what in (
    (found.equal, 'have the same content'),
    (found.near or [], 'show almost the same picture'),
  ):
    for of, where, advice in (
      (
        found.split_of,
        'are in different splits',
        'The test metrics are then too good. Remove the copies',
      ),
      (
        found.label_of,
        'have different labels',
        'One of the labels is wrong. Correct it, or remove the files',
      ),
    ):
      across = found.across(groups, of)
      if across:
        paths = ', '.join(
          f'{listing.key_of(x, found.folder)} ({of[x]})' for x in across[0][:3]
        )
        yield (
          f'warning: {len(across)} group(s) of files {what}, but {where}, such '
          f'as {paths}. {advice}'
        )


def _kinds(found):
  return ', '.join(f'{count} {kind}' for kind, count in found.kinds.items())


def _majority(found):
  if found.majority:
    name, fraction = found.majority
    yield (
      f'always answering {name!r} is right for {100 * fraction:.1f} % of the '
      'test images'
    )


def _class_table(counts):
  """Yields a table of the images by class and split."""
  if not counts:
    return
  names = sorted(counts['train'], key=counts['train'].get, reverse=True)
  width = max(len(name) for name in ['class', *names[:_SHOWN_CLASSES]])
  yield '  '.join(['class'.ljust(width), *(f'{x:>10}' for x in counts)])
  for name in names[:_SHOWN_CLASSES]:
    numbers = (f'{of[name]:>10}' for of in counts.values())
    yield '  '.join([name.ljust(width), *numbers])
  if len(names) > _SHOWN_CLASSES:
    yield f'… and {len(names) - _SHOWN_CLASSES} classes with fewer images'


def _imbalance(counts):
  """Yields warnings about rare classes."""
  if not counts:
    return
  times = counts['train']
  low, high = min(times, key=times.get), max(times, key=times.get)
  if times[high] >= _IMBALANCE * times[low]:
    yield (
      f'warning: the classes are imbalanced: {times[high]} training images of '
      f'{high!r}, {times[low]} of {low!r}. See config.class_weights, '
      'config.sampling and the balanced accuracy'
    )
  for split in ('test', 'validation'):
    missing = [x for x, n in counts.get(split, {}).items() if not n]
    if missing:
      yield (
        f'warning: no {split} images of {listing.some(missing)}. Nothing is '
        'measured for a class without them. A class needs two or more images'
      )


def _size_lines(sizes, size):
  """Yields lines about the heights and widths [N, 2] of images."""
  order = sizes.prod(1).argsort()
  yield 'height x width: ' + ', '.join(
    '{} {} x {}'.format(word, *sizes[order[i]])
    for word, i in (
      ('smallest', 0),
      ('median', len(order) // 2),
      ('largest', -1),
    )
  )
  small = int((sizes.min(1) < size).sum())
  if small:
    yield (
      f'{small} of {len(sizes)} images have a side below {size} px, so they '
      'are enlarged'
    )


def _groups_line(groups, what):
  such = f', such as {" = ".join(groups[0][:3])}' if groups else ''
  return f'{what}: {len(groups)} group(s){such}'
