"""Detection of the launcher of several processes, and of their GPUs."""

import os

import pytest

from vit_jax.parallel import processes


def slurm(monkeypatch, **variables):
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'CUDA_VISIBLE')):
      monkeypatch.delenv(name)
  for name, value in variables.items():
    monkeypatch.setenv(name, str(value))


def test_detection(monkeypatch):
  slurm(monkeypatch)
  assert processes.detect() is None
  # The script of a job with four tasks, before it calls `srun`.
  slurm(monkeypatch, SLURM_JOB_ID=7, SLURM_NTASKS=4, SLURM_PROCID=0)
  assert processes.detect() is None
  assert not processes.start()  # one process, without waiting
  slurm(monkeypatch, SLURM_STEP_NUM_TASKS=1, SLURM_NTASKS=1)
  assert processes.detect() is None
  slurm(monkeypatch, SLURM_STEP_NUM_TASKS=4)
  assert processes.detect() == 'SLURM'
  assert not processes.start(num_processes=1)  # explicitly one process
  slurm(monkeypatch, OMPI_COMM_WORLD_SIZE=2)
  assert processes.detect() == 'Open MPI'


@pytest.mark.parametrize(
  'tasks, node, local, visible, expected',
  [
    ('8', 0, 3, '0,1,2,3,4,5,6,7', [3]),  # one GPU for each process
    ('1(x2)', 1, 0, '0,1,2,3', [0, 1, 2, 3]),  # one process per machine
    ('4,2(x3)', 2, 1, '0,1,2,3', [2, 3]),
    ('4', 0, 3, '5', [0]),  # the scheduler shows each process only its own GPU
    ('4', 0, 3, '', None),
  ],
)
def test_gpus_of_a_process(monkeypatch, tasks, node, local, visible, expected):
  slurm(
    monkeypatch,
    SLURM_STEP_TASKS_PER_NODE=tasks,
    SLURM_NODEID=node,
    SLURM_LOCALID=local,
    CUDA_VISIBLE_DEVICES=visible,
  )
  assert processes.local_gpus('SLURM') == expected


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(coordinator='a:1'), 'num_processes and process_id must be set'),
    (dict(num_processes=2, process_id=0), 'coordinator must be set.*HOST:PORT'),
    (
      dict(coordinator='a', num_processes=2, process_id=0),
      'coordinator=a .*HOST:PORT',
    ),
    (
      dict(coordinator='a:1', num_processes=2, process_id=2),
      'process_id=2 .* 0 to 1',
    ),
  ],
)
def test_invalid_combinations_of_arguments(given, message):
  with pytest.raises(ValueError, match=message):
    processes.start(**given)
