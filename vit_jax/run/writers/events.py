"""Writes files for TensorBoard."""

from collections.abc import Mapping
import glob
import os

import numpy as np

MODULES = ('clu', 'tensorboard', 'tensorflow')  # that this writer needs


class Events:
  """A writer of TensorBoard events; the file appears with the first one."""

  def __init__(self, folder: str):
    """Creates a writer.

    Args:
      folder: the run folder.
    """
    self._folder = folder
    self._writer = None

  def __call__(
    self,
    step: int,
    numbers: Mapping[str, float],
    pictures: Mapping[str, np.ndarray],
  ) -> None:
    """Writes numbers and pictures of a step."""
    from clu import metric_writers

    if not self._writer:
      self._writer = metric_writers.SummaryWriter(self._folder)
    self._writer.write_scalars(step, numbers)
    if pictures:
      images = {name: picture[None] for name, picture in pictures.items()}
      self._writer.write_images(step, images)
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._writer:
      self._writer.close()


def drop_after(step: int, folder: str) -> None:
  """Removes events after `step` from TensorBoard's files.

  A resumed run writes these events again. TensorBoard would show them twice.

  Args:
    step: step from which the run resumes.
    folder: the run folder.
  """
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.compat.proto import event_pb2
  from tensorboard.summary.writer import record_writer

  partial = os.path.join(folder, 'events.partial')  # not read by TensorBoard
  for path in glob.glob(os.path.join(glob.escape(folder), '*tfevents*')):
    dropped = False
    with open(partial, 'wb') as file:
      writer = record_writer.RecordWriter(file)
      for record in event_file_loader.RawEventFileLoader(path).Load():
        if event_pb2.Event.FromString(record).step <= step:
          writer.write(record)
        else:
          dropped = True
    if dropped:
      os.replace(partial, path)
    else:
      os.remove(partial)
