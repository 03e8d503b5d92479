import io
import logging
import sys

import pytest
import tqdm

from vit_jax import console
from vit_jax.run.writers import plot


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_measures_the_steps_after_start_clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  progress = console.Progress(total_steps=100, images_per_step=8)
  progress.start_clock(1)
  assert progress.measure(1) is None
  now[0] += 4
  assert progress.measure(11) == 20.0
  now[0] += 1000  # seconds of an evaluation
  progress.start_clock(11)
  now[0] += 4
  assert progress.measure(21) == 20.0


def test_a_terminal_shows_one_line_that_is_redrawn(monkeypatch):
  """The rate is for the last steps; the remaining time uses all steps."""
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
  progress.show(60, {'train_loss': 0.5}, None)  # without a learning rate
  assert terminal.getvalue().endswith('step 60/100  loss 0.5000')


def test_without_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch):
  stream, now = io.StringIO(), [0.0]
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  status = console._StatusLine()
  for second in range(25):
    now[0] = float(second)
    status.show(f'at {second}')
  assert stream.getvalue().split('\n') == ['at 0', 'at 10', 'at 20', '']


@pytest.fixture(name='clock')
def fixture_clock(monkeypatch):
  """A list [seconds] that replaces the clocks of console and tqdm."""
  monkeypatch.setattr(console, '_status', console._StatusLine())
  now = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(tqdm.std, 'time', lambda: now[0])
  monkeypatch.setenv('COLUMNS', '60')
  return now


def test_counting_shows_the_remaining_time(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  items = []
  for item in console.counting(range(4), 4, 'evaluating'):
    items.append(item)
    clock[0] += 3
  assert items == [0, 1, 2, 3]
  first, *_, last = terminal.getvalue().split('\r\033[K')[1:]
  assert first.startswith('evaluating:  25%|')
  assert '| 1/4 [00:03<00:08,  3.00s/it]' in first and len(first) < 60
  assert last == ''  # the line is empty again


def test_a_download_shows_the_rate_and_the_remaining_time(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  for total in (10**7, None):
    with console.Bar(
      desc='a.npz', total=total, unit='B', unit_scale=True
    ) as bar:
      for _ in range(3):
        clock[0] += 1.25
        bar.update(10**6)
  lines = [line for line in terminal.getvalue().split('\r\033[K') if line]
  assert len(lines) == 4  # no line in the first two seconds
  assert '| 2.00M/10.0M [00:02<00:10, 800kB/s]' in lines[0]
  assert '| 3.00M/10.0M [00:03<00:08, 800kB/s]' in lines[1]
  assert lines[3] == 'a.npz: 3.00MB [00:03, 800kB/s]'


@pytest.mark.parametrize('seconds, lines', [(0.1, 0), (1, 2)])
def test_without_a_terminal_a_bar_is_a_few_lines(
  monkeypatch, clock, seconds, lines
):
  stream = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', stream)
  for _ in console.counting(range(18), 18, 'evaluating'):
    clock[0] += seconds
  assert '\r' not in stream.getvalue()
  assert stream.getvalue().count('evaluating') == lines
  assert stream.getvalue().count('\n') == lines


def test_a_message_removes_the_bar_first(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  for item in console.counting(range(2), 2, 'evaluating'):
    clock[0] += 3
    if item:
      console.log_info('a message')
  before, after = terminal.getvalue().split('a message\n')
  assert before.endswith('s/it]\r\033[K')
  assert after.startswith('\r\033[K')


def test_silent_processes_show_no_bar(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setattr(console, '_silent', True)
  for _ in console.counting(range(4), 4, 'evaluating'):
    clock[0] += 3
  assert terminal.getvalue() == ''


def test_one_of_several_bars_is_shown(monkeypatch, clock):
  """Downloads of huggingface_hub have two bars, at positions 0 and 1."""
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  bars = [console.Bar(desc=f'bar {i}', total=9, position=i) for i in (0, 1)]
  for _ in range(4):
    clock[0] += 3
    for bar in bars:
      bar.update(1)
  assert 'bar 0' in terminal.getvalue() and 'bar 1' not in terminal.getvalue()


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


def test_a_plot_with_and_without_rows(tmp_path):
  for rows in (
    [],
    [
      {'step': 1, 'train_loss': 1.0, 'lr': 0.1},
      {'step': 2, 'accuracy_test': 0.5, 'loss_test': 1.0},
    ],
  ):
    plot.draw(rows, tmp_path / 'x.png', 'accuracy_test')
    assert (tmp_path / 'x.png').stat().st_size > 5000
