import io
import logging
import sys

from vit_jax import console
from vit_jax.run import metric_log


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_measures_what_was_run_after_the_clock_was_started(
  monkeypatch,
):
  now = [100.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  progress = console.Progress(total_steps=100, images_per_step=8)
  progress.start_clock(1)
  assert progress.measure(1) is None
  now[0] += 4
  assert progress.measure(11) == 20.0
  now[0] += 1000  # an evaluation
  progress.start_clock(11)
  now[0] += 4
  assert progress.measure(21) == 20.0


def test_a_terminal_has_one_line_redrawn(monkeypatch):
  """Its rate is that of the last steps, its time left that of all so far."""
  terminal, now = Terminal(), [0.0]
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  progress = console.Progress(total_steps=100, images_per_step=8)
  progress.start_clock(0)
  for step, seconds in ((10, 4), (20, 16), (50, 10)):
    now[0] += seconds
    rate = progress.measure(step)
    progress.show(step, {'train_loss': 0.5, 'lr': 0.1}, rate)
  assert '\n' not in terminal.getvalue()
  assert terminal.getvalue().split('\r\033[K')[1:] == [
    f'step {step}/100  loss 0.5000  lr 1.00e-01  {end} left'
    for step, end in (
      (10, '20 images/s  0:36'),
      (20, '5 images/s  1:20'),
      (50, '24 images/s  0:30'),
    )
  ]


def test_elsewhere_lines_come_now_and_then(monkeypatch):
  stream, now = io.StringIO(), [0.0]
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  status = console._StatusLine()
  for second in range(25):
    now[0] = float(second)
    status.show(f'at {second}')
  assert stream.getvalue().split('\n') == ['at 0', 'at 10', 'at 20', '']


def test_long_counting_tells_what_is_left(monkeypatch):
  terminal, now = Terminal(), [0.0]
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  items = []
  for item in console.counting(range(4), 4, 'evaluating'):
    items.append(item)
    now[0] += 3
  assert items == [0, 1, 2, 3]
  assert 'evaluating: 1/4  0:09 left' in terminal.getvalue()


def test_bytes_on_their_way_tell_rate_and_time_left(monkeypatch):
  terminal, now = Terminal(), [0.0]
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  for total in (10**7, None):
    pieces = []
    for piece in console.transferring(
      [b'x' * 10**6] * 3, 'fetching a', 4 * 10**6, total
    ):
      pieces.append(piece)
      now[0] += 1.25
    assert list(map(len, pieces)) == [10**6] * 3
  lines = [line for line in terminal.getvalue().split('\r\033[K') if line]
  assert lines == [
    'fetching a: 6.0/10.0 MB  0.8 MB/s  0:05 left',
    'fetching a: 7.0/10.0 MB  0.8 MB/s  0:04 left',
    'fetching a: 6.0 MB  0.8 MB/s',
    'fetching a: 7.0 MB  0.8 MB/s',
  ]


def test_file_sizes():
  assert [console.file_size(n) for n in (0, 99_999, 100_000, 410 * 10**6)] == [
    '0 bytes',
    '99999 bytes',
    '0.1 MB',
    '410.0 MB',
  ]


def test_messages_go_to_the_terminal_and_the_log(tmp_path, capsys):
  logging.getLogger().handlers, before = [], logging.getLogger().handlers
  console.start_logging(str(tmp_path))
  console.log_info('50 % done')
  console.log('not shown')
  logging.getLogger('some.package').warning('careful')
  logging.getLogger('some.package').info('chatter')
  logging.getLogger().handlers = before
  assert capsys.readouterr().err == '50 % done\n'
  text = (tmp_path / 'log.txt').read_text()
  assert [line.split(': ')[1] for line in text.splitlines()] == [
    '50 % done',
    'not shown',
    'careful',
  ]


def test_durations():
  assert [console.duration(s) for s in (0, 59.6, 61, 3600, 86399)] == [
    '0:00',
    '1:00',
    '1:01',
    '1:00:00',
    '23:59:59',
  ]


def test_a_picture_of_nothing_and_of_something(tmp_path):
  for rows in (
    [],
    [
      {'step': 1, 'train_loss': 1.0, 'lr': 0.1},
      {'step': 2, 'accuracy_test': 0.5, 'loss_test': 1.0},
    ],
  ):
    metric_log.draw(rows, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 5000
