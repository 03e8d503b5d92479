import errno
import json
import os
import stat

import numpy as np
import pytest
import safetensors.numpy

from tests import tiny_run
from tests.checkpoint.test_trained_model import assert_same_bits
from vit_jax import models
from vit_jax.checkpoint import trained_model
from vit_jax.commands import export
from vit_jax.export import formats
from vit_jax.export import timm_config


@pytest.mark.parametrize(
  'out, files',
  [
    ('my.npz', ['my.npz', 'my.npz.json']),
    ('my.safetensors', ['my.safetensors', 'my.safetensors.json']),
    ('my.model/', ['config.json', 'model.safetensors']),
  ],
)
def test_a_round_trip_keeps_every_bit(
  finished_run, tmp_path, monkeypatch, capsys, out, files
):
  monkeypatch.chdir(tmp_path)
  export.main([finished_run.workdir, out])
  said = capsys.readouterr()
  folder = tmp_path / out if out.endswith('/') else tmp_path
  assert sorted(os.listdir(folder)) == files
  for name in files:
    assert f'{name} ({os.path.getsize(folder / name):,} bytes)' in said.err
  assert 'testing (' in said.err and 'parameters, 3 classes' in said.err
  original = trained_model.load_model(finished_run.workdir)
  again = trained_model.load_model(out)
  assert_same_bits(again.params, finished_run.params)
  for field in ('name', 'settings', 'model', 'image_size', 'class_names'):
    assert getattr(again, field) == getattr(original, field)

  # Exporting again to another format keeps every bit, too.
  formats.export(again, str(tmp_path / 'other.npz'))
  assert_same_bits(
    trained_model.load_model('other.npz').params, finished_run.params
  )


@pytest.mark.parametrize('umask', [0o022, 0o027])
def test_files_have_the_permissions_of_the_umask(finished_run, tmp_path, umask):
  trained = trained_model.load_model(finished_run.workdir)
  before = os.umask(umask)
  try:
    for out in ('w.npz', 'w.safetensors', 'folder'):
      formats.export(trained, str(tmp_path / out))
  finally:
    os.umask(before)
  for path in tmp_path.rglob('*'):
    expected = (0o777 if path.is_dir() else 0o666) & ~umask
    assert stat.S_IMODE(path.stat().st_mode) == expected, path
  assert len(list(tmp_path.rglob('*'))) == 7


def test_options_change_the_exported_model(finished_run, tmp_path):
  (tmp_path / 'names').write_text('x\ny\nz\n')
  export.main(
    [
      finished_run.workdir,
      str(tmp_path / 'w.npz'),
      '--step=10',
      '--image_size=16x8',
      f'--class_names={tmp_path}/names',
    ]
  )
  found = trained_model.load_model(str(tmp_path / 'w.npz'))
  assert found.image_size == found.trained_size == (16, 8)
  assert found.class_names == ('x', 'y', 'z')
  assert_same_bits(
    found.params,
    trained_model.load_model(
      finished_run.workdir, step=10, image_size=(16, 8)
    ).params,
  )


@pytest.mark.parametrize(
  'places',
  [
    ['--weights_sources=/nowhere,{}/mirror'],
    ['--pretrained_dir={}/mirror/vit_models/sam', '--weights_sources='],
  ],
)
def test_a_published_name_from_a_mirror(
  finished_run, tmp_path, monkeypatch, places
):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  path = tmp_path / 'mirror/vit_models/sam/ViT-B_16.npz'
  path.parent.mkdir(parents=True)
  export.main([finished_run.workdir, str(path)])
  name = 'sam/ViT-B_16' if 'pretrained_dir' not in places[0] else 'ViT-B_16'
  export.main(
    [
      name,
      str(tmp_path / 'my.npz'),
      *(place.format(tmp_path) for place in places),
    ]
  )
  assert_same_bits(
    trained_model.load_model(str(tmp_path / 'my.npz')).params,
    finished_run.params,
  )


def test_nothing_is_overwritten(finished_run, tmp_path, capsys):
  for name in ('a.npz', 'b.npz.json', 'c/kept'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
  for out, taken in (('a.npz', 'a.npz'), ('b.npz', 'b.npz.json'), ('c', 'c')):
    with pytest.raises(SystemExit) as left:
      export.main([finished_run.workdir, str(tmp_path / out)])
    assert left.value.code == 2
    log = capsys.readouterr().err
    assert log.startswith(f'error: {tmp_path / taken} exists ')
    assert log.count('\n') == 1 and 'Remove it' in log
  assert (tmp_path / 'a.npz').read_text() == 'mine'
  assert sorted(os.listdir(tmp_path)) == ['a.npz', 'b.npz.json', 'c']


@pytest.mark.parametrize(
  'out, message',
  [
    ('w.pth', 'w.pth .* .npz or .safetensors, or in a slash for a folder'),
    ('no/such/w.npz', 'there is no folder .*no/such'),
    ('no/such/', 'there is no folder .*no'),
  ],
)
def test_outputs_that_cannot_be_written(finished_run, tmp_path, out, message):
  with pytest.raises(ValueError, match=message):
    formats.check_free(str(tmp_path / out))


@pytest.mark.parametrize('out', ['w.npz', 'w.safetensors', 'w/'])
def test_a_full_disk_leaves_nothing_behind(
  finished_run, tmp_path, monkeypatch, out
):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def full_for_rust(*_):
    raise safetensors.SafetensorError('No space left on device (os error 28)')

  trained = trained_model.load_model(finished_run.workdir)
  monkeypatch.setattr(np, 'savez', full)
  monkeypatch.setattr(safetensors.numpy, 'save_file', full_for_rust)
  with pytest.raises(
    OSError, match=(f'{out.rstrip("/")} cannot be written: No space left')
  ):
    formats.export(trained, str(tmp_path / out))
  assert os.listdir(tmp_path) == []


def described(**overrides):
  """Returns the metadata that timm gets."""
  model = models.get_model('b16', num_classes=2, **overrides)
  return timm_config.make(
    trained_model.TrainedModel(
      'w',
      'ViT-B_16',
      overrides,
      model,
      {},
      (224, 160),
      (224, 160),
      ('cat', 'dog'),
    )
  )[0]


def test_metadata_for_timm():
  found = described(classifier='gap', mlp_dim=1000, dropout_rate=0.1)
  assert found['model_args'] == {
    'img_size': [224, 160],
    'patch_size': 16,
    'embed_dim': 768,
    'depth': 12,
    'num_heads': 12,
    'mlp_ratio': 1000 / 768,
    'class_token': False,
    'reg_tokens': 0,
    'init_values': None,
    'qk_norm': False,
    'global_pool': 'avg',
    'fc_norm': False,
    'act_layer': 'gelu_tanh',
  }
  assert found['pretrained_cfg'] == {
    'input_size': [3, 224, 160],
    'fixed_input_size': True,
    'interpolation': 'bilinear',
    'crop_pct': 1.0,
    'crop_mode': 'squash',
    'mean': [0.5, 0.5, 0.5],
    'std': [0.5, 0.5, 0.5],
    'num_classes': 2,
    'custom_load': False,
    'label_names': ['cat', 'dog'],
  }
  assert found['architecture'] == 'vit_base_patch16_224'
  assert found['num_classes'] == 2
  assert described()['model_args']['global_pool'] == 'token'
  for width in range(1, 200):  # timm rounds down
    ratio = described(mlp_dim=width)['model_args']['mlp_ratio']
    assert int(768 * ratio) == width
  json.dumps(found)


def test_an_architecture_of_timm_with_equal_settings():
  found = described(
    gelu='quick', pre_norm=True, patch_bias=False, norm_epsilon=1e-5
  )
  assert found['architecture'] == 'vit_base_patch16_clip_quickgelu_224'
  assert found['model_args'] == {
    'img_size': [224, 160],
    'patch_size': 16,
    'embed_dim': 768,
    'depth': 12,
    'num_heads': 12,
    'mlp_ratio': 4.0,
    'global_pool': 'token',
  }


def test_metadata_of_a_bit_for_timm():
  model = models.get_model('BiT-R101x3', num_classes=2)
  found = timm_config.make(
    trained_model.TrainedModel(
      'w', 'BiT-R101x3', {}, model, {}, (64, 96), (64, 96), None
    )
  )[0]
  assert found['architecture'] == 'resnetv2_101x3_bit'
  assert found['model_args'] == {}
  assert not found['pretrained_cfg']['fixed_input_size']


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'representation_size': 7}, 'timm .* representation_size=7'),
    ({'positions': 'none'}, 'timm .* positions=none'),
    ({'gelu': 'quick'}, 'timm .* gelu=quick'),
    ({'classifier': 'token_gap'}, 'timm .* classifier=token_gap'),
    ({'stem_units': (1,)}, r'timm .* stem_units=\(1,\)'),
  ],
)
def test_settings_that_timm_lacks(settings, message):
  with pytest.raises(ValueError, match=f'{message}.* an .npz file'):
    described(**settings)


def test_array_names_in_the_exported_formats(finished_run, tmp_path):
  """The arrays have the names that other readers expect."""
  trained = trained_model.load_model(finished_run.workdir)
  formats.export(trained, str(tmp_path / 'w.npz'))
  formats.export(trained, str(tmp_path / 'w/'))
  with np.load(tmp_path / 'w.npz') as file:
    assert 'Transformer/encoderblock_0/LayerNorm_0/scale' in file.files
    np.testing.assert_array_equal(
      file['head/kernel'], finished_run.params['head']['kernel']
    )
  arrays = safetensors.numpy.load_file(tmp_path / 'w/model.safetensors')
  np.testing.assert_array_equal(
    arrays['head.weight'].T, finished_run.params['head']['kernel']
  )
  config = json.loads((tmp_path / 'w/config.json').read_text())
  assert config['pretrained_cfg']['label_names'] == list(tiny_run.CLASSES)
