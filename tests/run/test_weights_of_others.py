"""A run that starts from weights of another library."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.checkpoint import test_narrow_models
from tests.digits_run import make_config
from vit_jax import train
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.export import formats

pytestmark = pytest.mark.slow


@pytest.fixture(name='finished', scope='module')
def fixture_finished(tmp_path_factory):
  """Returns (config, run folder, state) of a narrow EVA-02 after 4 steps."""
  weights = tmp_path_factory.mktemp('eva02_gated')
  test_narrow_models.load(weights, 'eva02_gated')
  config = make_config(
    pretrained=str(weights), total_steps=4, eval_every=2, checkpoint_every=2
  )
  config.model.name = 'weights'
  config.model.patch_size = None
  config.pp.crop = 0
  config.freeze = 'embedding/.*'
  config.layer_decay = 0.5
  config.mesh.fsdp = 2
  run = tmp_path_factory.mktemp('run')
  return config, run, train.train_and_evaluate(config, str(run)).state


def test_architecture_and_license_are_those_of_the_weights(finished):
  config, run, _ = finished
  found = metadata.of_run(str(run))
  assert found.settings['rotary'] == 'axial'
  assert found.image_size == (42, 42)
  assert found.license == 'mit'
  trained = trained_model.load_model(str(run))
  before = trained_model.load_model(config.pretrained).params
  jax.tree.map(
    np.testing.assert_array_equal,
    *(x['embedding'] for x in (trained.params, before)),
  )
  blocks = (
    x['Transformer']['encoderblock_0'] for x in (trained.params, before)
  )
  changes = jax.tree.map(lambda x, y: np.abs(x - y).max(), *blocks)
  assert min(jax.tree.leaves(changes)) > 0


def test_a_run_resumes_without_the_weights_and_on_another_mesh(
  finished, tmp_path
):
  config, run, state = finished
  resumed = tmp_path / 'run'
  shutil.copytree(run, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '4')
  shutil.move(config.pretrained, tmp_path / 'weights')
  config = config.copy_and_resolve_references()
  config.mesh.fsdp = 1
  again = train.train_and_evaluate(config, str(resumed)).state
  shutil.move(tmp_path / 'weights', config.pretrained)
  assert metadata.of_run(str(resumed)).license == 'mit'
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    *(again.params, state.params),
  )


def test_an_export_has_the_layout_and_the_license_of_the_weights(
  finished, tmp_path
):
  config, run, _ = finished
  trained = trained_model.load_model(str(run))
  formats.export(trained, str(tmp_path / 'out'))
  found = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert found['pretrained_cfg']['license'] == 'mit'
  assert found['architecture'] == 'eva02_base_patch14_448'
  before, after = (
    safetensors.numpy.load_file(f'{folder}/model.safetensors')
    for folder in (config.pretrained, tmp_path / 'out')
  )
  assert before.keys() == after.keys()
  again = trained_model.load_model(str(tmp_path / 'out'))
  jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
