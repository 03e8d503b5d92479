"""Prediction with several processes."""

import json

import pytest

from tests.parallel import test_processes
from vit_jax.checkpoint import trained_model
from vit_jax.inference import classify

SCRIPT = """
import dataclasses, json, sys
import jax
from vit_jax.checkpoint import trained_model
from vit_jax.inference import classify
from vit_jax.parallel import processes

coordinator, count, index, workdir, paths = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
assert jax.process_count() == 2 and jax.local_device_count() == 2
# Each process has different images, and a different number of images.
paths = json.loads(paths)['paths'][int(index):]
trained = trained_model.load_model(workdir)
found = classify.classify(trained, paths, top=2, batch=3)
print('found:', json.dumps([dataclasses.asdict(p) for p in found]))
"""


@pytest.mark.slow
def test_each_process_gets_the_answers_for_its_own_images(finished_run):
  paths = sorted(map(str, finished_run.photos.rglob('test/*/*.png')))[:8]
  outputs = test_processes.finish(
    test_processes.start_all(
      2, finished_run.workdir, 2, script=SCRIPT, paths=paths
    )
  )
  alone = list(
    classify.classify(
      trained_model.load_model(finished_run.workdir), paths, top=2
    )
  )
  for index, text in enumerate(outputs):
    (line,) = [x for x in text.splitlines() if x.startswith('found: ')]
    found = json.loads(line.removeprefix('found: '))
    for answer, expected in zip(found, alone[index:], strict=True):
      assert answer['path'] == expected.path
      assert answer['classes'] == expected.classes
      assert answer['probabilities'] == pytest.approx(
        expected.probabilities, rel=1e-4
      )
