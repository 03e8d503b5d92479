"""Compares the given batches of several processes."""

import dataclasses
import hashlib
from typing import Any

from vit_jax import console
from vit_jax.data.given import batch_checks
from vit_jax.parallel import processes


def agree(data: Any) -> Any:
  """Returns the data with the numbers of examples of all processes.

  All processes must call it.

  Args:
    data: `input_pipeline.Datasets` of given batches of this process.

  Raises:
    ValueError: the batches of the processes do not fit together.
  """
  counts = {
    split: source.share
    for split, source in data.sources.items()
    if split != 'train'
  }
  share = data.share
  rows = batch_checks.rows_of(data.sources['train'].sample, False)
  processes.check_same(
    {
      'the arrays of the training batches': {
        name: f'{dtype} {list(shape)}' for name, (shape, dtype) in rows.items()
      },
      'the splits': sorted(counts),
    }
  )
  every = processes.exchange(
    {
      'counts': counts,
      'group': share.group,
      'digests': _digests(data.sources['train'].sample, share),
    }
  )
  _check_parts([x['digests'] for x in every])
  if counts and share.num_groups == 1 and len(share.parts) < share.num_parts:
    raise ValueError(
      'the rows of the processes overlap on this mesh, so given evaluation '
      'batches cannot be divided. Give test and validation as arrays, or use '
      'other values of config.mesh'
    )
  sources = dict(data.sources)
  for split in counts:
    by_group = [
      {x['counts'][split] for x in every if x['group'] == group}
      for group in range(share.num_groups)
    ]
    numbers = [n for found in by_group for n in found]
    if len(numbers) > len(by_group) or max(numbers) > min(numbers) + 1:
      raise ValueError(
        f'the processes give {[x["counts"][split] for x in every]} examples of '
        f'{split}. Processes with the same rows must give the same examples, '
        'and the numbers of the others may differ by one'
      )
    sources[split] = dataclasses.replace(
      sources[split], num_examples=sum(numbers)
    )
  return dataclasses.replace(data, sources=sources)


def _digests(batch, share):
  """Returns {part of the global batch: hash of its rows}."""
  size = batch_checks.num_rows(batch) // len(share.parts)
  found = {}
  for i, part in enumerate(share.parts):
    digest = hashlib.sha256()
    for name, x in sorted(batch.items()):
      digest.update(name.encode())
      for row in x[i * size : (i + 1) * size]:
        digest.update(row if isinstance(row, bytes) else row.tobytes())
    found[str(part)] = digest.hexdigest()
  return found


def _check_parts(every):
  """Compares the rows of the first batch of all processes."""
  known = {}
  for process, digests in enumerate(every):
    for part, digest in digests.items():
      first, other = known.setdefault(part, (process, digest))
      if other != digest:
        raise ValueError(
          f'processes {first} and {process} hold the same rows of a batch on '
          'this mesh, but they give different examples in the first training '
          'batch. Processes that share rows must give equal batches: choose '
          'the examples by the rows of parallel.sharding.share_of, not by the '
          'process index'
        )
  digests = [digest for _, digest in known.values()]
  if len(set(digests)) < len(digests):
    console.log_info(
      'warning: two processes give equal examples in the first training '
      'batch. Each process must give its own rows, for example by its '
      'jax.process_index()'
    )
