import json
import shutil

import jax
import numpy as np
import pytest

from tests import reference
from tests import tiny_run
from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.models import architecture


def assert_same_bits(a, b):
  a, b = weights_file.flatten(a), weights_file.flatten(b)
  assert a.keys() == b.keys()
  for path, array in a.items():
    assert array.dtype == b[path].dtype
    np.testing.assert_array_equal(array, b[path], err_msg=path)


def write_weights(path, name, size=32, num_classes=5, **overrides):
  """Writes reference parameters of an architecture without metadata."""
  model = models.get_model(name, num_classes=num_classes, **overrides)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((1, size, size, 3)), train=False
    )
  )
  params = reference.params_like(shapes['params'])
  weights_file.save(path, params)
  return params


def test_a_run_has_its_model_its_parameters_and_its_classes(finished_run):
  trained = trained_model.load_model(finished_run.workdir)
  assert_same_bits(trained.params, finished_run.params)
  assert trained.name == 'testing'
  assert trained.model == models.get_model(
    'testing',
    num_classes=3,
    patch_size=4,
    hidden_size=12,
    num_heads=3,
    classifier='gap',
    dtype='float32',
  )
  assert trained.image_size == trained.trained_size == (8, 12)
  assert trained.class_names == tiny_run.CLASSES
  assert str(trained).startswith('testing (')
  assert f'{trained.num_params:,} parameters, 3 classes, images 8 x 12' in str(
    trained
  )


def test_steps_of_a_run(finished_run):
  def load(path='', **kwargs):
    return trained_model.load_model(
      finished_run.workdir + path, **kwargs
    ).params

  earlier = load(step=10)
  assert np.any(
    earlier['head']['kernel'] != finished_run.params['head']['kernel']
  )
  assert_same_bits(load('/checkpoints/10'), earlier)
  assert_same_bits(load('/checkpoints'), finished_run.params)
  with pytest.raises(ValueError, match='step=11 .*: 10, 20'):
    load(step=11)


def test_a_bare_file_is_recognized(tmp_path):
  params = write_weights(
    tmp_path / 'w.npz', 'testing', 64, representation_size=7
  )
  trained = trained_model.load_model(str(tmp_path / 'w.npz'))
  assert_same_bits(trained.params, params)
  assert trained.name == 'testing'
  assert trained.model.representation_size == 7
  assert trained.image_size == (64, 64)
  assert trained.class_names is None
  assert trained.shown_class_names[4] == 'class 4'
  with pytest.raises(ValueError, match='step=3.*w.npz.*run folder'):
    trained_model.load_model(str(tmp_path / 'w.npz'), step=3)


def test_the_image_size_of_a_bare_mixer(tmp_path):
  small = dict(hidden_size=8, num_layers=1, tokens_mlp_dim=6, mlp_dim=9)
  write_weights(tmp_path / 'w.npz', 'Mixer-B_16', 48, **small)
  for asked in (dict(model_name='mixer-b16', overrides=small), {}):
    trained = trained_model.load_model(str(tmp_path / 'w.npz'), **asked)
    assert trained.image_size == (48, 48)
    assert trained.name == 'Mixer-B_16' and trained.settings == small


@pytest.mark.parametrize(
  'settings',
  [
    dict(classifier='gap', positions='sincos2d'),
    dict(classifier='map', num_registers=2),
    dict(layer_scale=1e-4),
    dict(classifier='map', class_token=True, positions='learned_2d'),
    dict(qk_norm=True, positions='relative', head_dim=8),
    dict(classifier='gap', positions_at='every_layer', representation_size=6),
    dict(fractal_columns=2, num_layers=4),
    dict(stem_units=(1,), stem_width=32, patch_size=4),
    dict(hidden_size=24, mlp_dim=7, patch_size=8),
    dict(
      gated_mlp=True,
      mlp_norm=True,
      attention_norm=True,
      key_bias=False,
      pre_norm=True,
      patch_bias=False,
      distilled=True,
      qk_norm=True,
      qk_norm_bias=True,
    ),
    dict(
      block='parallel',
      norm='rms',
      qkv_bias=False,
      encoder_norm=False,
      head_norm=True,
      classifier='gap',
    ),
    dict(num_parallel=2),
    dict(
      classifier='probe',
      norm='rms',
      patch_norm=True,
      qkv_bias=False,
      out_bias=False,
      mlp_bias=False,
    ),
    dict(classifier='token_gap'),
  ],
  ids=str,
)
def test_the_settings_of_a_bare_file(tmp_path, settings):
  """The settings are found with and without a requested name."""
  sizes = (
    dict(patch_size=16, hidden_size=12, mlp_dim=8, num_heads=3, num_layers=2)
    | settings
  )
  params = write_weights(tmp_path / 'w.npz', 'testing', 48, **sizes)
  expected = models.get_model('testing', num_classes=5, **sizes)
  named = {
    key: value for key, value in sizes.items() if key in architecture.SIZES
  }
  for asked in ({}, dict(model_name='testing', overrides=named)):
    trained = trained_model.load_model(
      str(tmp_path / 'w.npz'), image_size=(48, 48), **asked
    )
    assert_same_bits(trained.params, params)
    assert trained.trained_size == (48, 48)
    assert trained.model.clone(dropout_rate=0.1) == expected
    assert architecture.has_positions(weights_file.flatten(params)) == (
      settings.get('positions') != 'sincos2d'
    )
  if settings.get('positions') == 'sincos2d':
    with pytest.raises(
      ValueError, match='w.npz.*no position embeddings.*image_size=224'
    ):
      trained_model.load_model(str(tmp_path / 'w.npz'))


def test_a_file_of_big_vision(tmp_path, capsys):
  """File like `vit_s16_in1k_90ep.npz`: pooled, no positions, stacked blocks."""
  model = models.get_model(
    'ViT-S_16',
    num_classes=5,
    num_layers=2,
    classifier='gap',
    positions='sincos2d',
  )
  params = reference.params_like(reference.initial_params(model, (32, 32)))
  flat, there = weights_file.flatten(params), {}
  for path, array in flat.items():
    if '_0/' in path and 'encoderblock_0/' in path:
      there[path.replace('encoderblock_0/', 'encoderblock/')] = np.stack(
        [array, flat[path.replace('encoderblock_0/', 'encoderblock_1/')]]
      )
    elif 'encoderblock_' not in path:
      there[path] = array
  np.savez(tmp_path / 'w.npz', **{f'params/{p}': x for p, x in there.items()})
  trained = trained_model.load_model(
    str(tmp_path / 'w.npz'), image_size=(32, 48)
  )
  assert trained.model == model
  assert_same_bits(trained.params, params)
  assert str(trained).startswith('ViT-S_16-gap-norep (')
  assert 'positions sincos2d' in str(trained)
  assert 'positions=sincos2d is used' in capsys.readouterr().err
  without = trained_model.load_model(
    str(tmp_path / 'w.npz'),
    image_size=(32, 48),
    overrides=dict(positions='none'),
  )
  assert without.model.positions == 'none'
  assert 'sincos2d' not in capsys.readouterr().err
  with pytest.raises(ValueError) as error:
    trained_model.load_model(
      str(tmp_path / 'w.npz'), image_size=(32, 32), model_name='ti16'
    )
  assert 'config.model.name=' not in str(error.value)  # it has no positions


def test_another_image_size_resamples_positions(finished_run):
  trained = trained_model.load_model(finished_run.workdir, image_size=(16, 8))
  positions = trained.params['Transformer']['posembed_input']['pos_embedding']
  stored = finished_run.params['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 4 * 2, 12)
  np.testing.assert_array_equal(  # Corners do not change.
    positions.reshape(4, 2, 12)[::3, ::1], stored.reshape(2, 3, 12)[:, ::2]
  )
  assert trained.trained_size == (8, 12)


def test_class_names_can_be_given(tmp_path, finished_run):
  (tmp_path / 'names.txt').write_text('a b\nc\nd\n', encoding='utf-8')
  (tmp_path / 'names.json').write_text('["a b", "c", "d"]')
  (tmp_path / 'bad.json').write_text('[1, 2]')
  for name in ('names.txt', 'names.json'):
    names = metadata.class_names_in(tmp_path / name)
    found = trained_model.load_model(finished_run.workdir, class_names=names)
    assert found.class_names == ('a b', 'c', 'd')
  with pytest.raises(
    ValueError, match='bad.json: name 1 of 2 is 1, not a class name'
  ):
    metadata.class_names_in(tmp_path / 'bad.json')
  (tmp_path / 'bad.txt').write_text('a\n\nb\n')
  with pytest.raises(ValueError, match="bad.txt: name 2 of 3 is ''"):
    metadata.class_names_in(tmp_path / 'bad.txt')
  (tmp_path / 'windows.txt').write_text('\ufeffa b \r\ncafe\u0301\r\n\r\n')
  names = metadata.class_names_in(tmp_path / 'windows.txt')
  assert names == ('a b', 'caf\xe9')
  with pytest.raises(
    ValueError, match='2 class names.*3 classes.*class_names='
  ):
    trained_model.load_model(finished_run.workdir, class_names=('a', 'b'))


@pytest.mark.parametrize(
  'requested, message',
  [
    ({'model_name': 'b16'}, 'model_name=ViT-B_16.*model_name=testing'),
    ({'overrides': {'num_heads': 2}}, 'num_heads=2.*config.model.num_heads=3'),
    (
      {'overrides': {'classifier': 'token'}},
      'classifier=token.*config.model.classifier=gap',
    ),
    ({'image_size': (9, 8)}, 'height 9 .*8 or 12'),
  ],
)
def test_requested_settings_must_match_the_run(
  finished_run, requested, message
):
  with pytest.raises(ValueError, match=message):
    trained_model.load_model(finished_run.workdir, **requested)
  free = trained_model.load_model(
    finished_run.workdir, overrides={'dtype': 'bfloat16', 'dropout_rate': 0.3}
  )
  assert free.model.dtype == 'bfloat16'


def test_a_bare_file_must_match_the_requested_settings(tmp_path):
  """Only training may drop a token or a layer: this changes the outputs."""
  path = str(tmp_path / 'w.npz')
  write_weights(path, 'testing', representation_size=7)
  with pytest.raises(ValueError, match='token'):
    trained_model.load_model(
      path, model_name='testing', overrides={'classifier': 'gap'}
    )
  with pytest.raises(ValueError, match='representation'):
    trained_model.load_model(path, overrides={'representation_size': None})


def test_files_that_cannot_be_loaded(tmp_path, finished_run):
  (tmp_path / 'folder').mkdir()
  with pytest.raises(ValueError, match='neither a finished checkpoint'):
    trained_model.load_model(str(tmp_path / 'folder'))
  np.savez(tmp_path / 'x.npz', x=np.ones(3))
  with pytest.raises(
    ValueError, match=r'x.npz has 1 arrays \(x \(3,\).*model_name='
  ):
    trained_model.load_model(str(tmp_path / 'x.npz'))
  with pytest.raises(ValueError, match='no/such'):
    trained_model.load_model('no/such')
  with pytest.raises(ValueError, match="'scratch' means randomly initialized"):
    trained_model.load_model('scratch')
  path = tmp_path / 'w.npz'
  write_weights(path, 'testing')
  (tmp_path / 'w.npz.json').write_text('{"vit_jax": {"model": {}}}')
  with pytest.raises(
    ValueError,
    match='w.npz.json: vit_jax.model is {}, but must be an object .* with name',
  ):
    trained_model.load_model(str(path))
  (tmp_path / 'w.npz.json').write_text('{"vit_jax": ')
  with pytest.raises(ValueError, match='w.npz.json is damaged'):
    trained_model.load_model(str(path))
  (tmp_path / 'w.npz.json').write_text('{"of": "another program"}')
  assert trained_model.load_model(str(path)).name == 'testing'


def test_a_run_whose_settings_are_damaged(tmp_path):
  (tmp_path / 'checkpoints/10').mkdir(parents=True)
  (tmp_path / 'config.json').write_text('{"seed": 0,\n')
  with pytest.raises(ValueError, match=r'/config\.json is damaged.*line 2'):
    trained_model.load_model(str(tmp_path))


def test_class_names_of_other_libraries(tmp_path):
  """Class names in config.json of timm and Hugging Face."""

  def written(**config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    return metadata.of_weights(str(tmp_path / 'model.safetensors')).class_names

  assert written(pretrained_cfg={'label_names': ['a', 'b']}) == ('a', 'b')
  assert written(id2label={'1': 'b', '0': 'a'}) == ('a', 'b')
  assert written(id2label={'0': 'LABEL_0', '1': 'LABEL_1'}) is None
  assert written(architecture='vit_tiny_patch16_224') is None


def test_a_run_that_lost_its_settings_is_recognized(tmp_path, finished_run):
  shutil.copytree(
    f'{finished_run.workdir}/checkpoints/20', tmp_path / 'checkpoints/20'
  )
  with pytest.raises(
    ValueError, match='no position embeddings of a square.*image_size='
  ):
    trained_model.load_model(str(tmp_path))
  assert (
    trained_model.load_model(str(tmp_path), image_size=(8, 12)).settings[
      'hidden_size'
    ]
    == 12
  )
  trained = trained_model.load_model(
    str(tmp_path),
    model_name='testing',
    image_size=(8, 12),
    overrides={
      'patch_size': 4,
      'hidden_size': 12,
      'num_heads': 3,
      'classifier': 'gap',
    },
  )
  assert_same_bits(trained.params, finished_run.params)


def test_a_description_is_json(finished_run):
  trained = trained_model.load_model(finished_run.workdir)
  stored = json.loads(json.dumps(trained.description.to_json()))['vit_jax']
  assert stored['image_size'] == [8, 12]
  assert stored['class_names'] == list(tiny_run.CLASSES)
  assert stored['model']['hidden_size'] == 12
