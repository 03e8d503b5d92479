"""Runs of config.task=mae that start from published files."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.special

from tests import digits_run
from tests import tiny_run
from vit_jax import data as vit_data
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.commands import embed
from vit_jax.commands import evaluate
from vit_jax.commands import predict
from vit_jax.run import setup
from vit_jax.run.start import adopted_settings
from vit_jax.run.start import initial_weights
from vit_jax.tasks import task

# B images · N patches · K visible patches · P patch size · D, E widths
SIDE, SIZE, K, D, E, HEADS = 4, 16, 4, 16, 8, {'': 4, 'decoder_': 2}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
ORDER = np.argsort(RNG.uniform(size=(3, 16)), axis=1).astype(np.int32)
CONFIG = dict(
  model_type='vit_mae',
  architectures=['ViTMAEForPreTraining'],
  hidden_size=D,
  num_hidden_layers=1,
  num_attention_heads=4,
  intermediate_size=4 * D,
  image_size=SIZE,
  patch_size=SIDE,
  layer_norm_eps=1e-6,
  decoder_hidden_size=E,
  decoder_num_hidden_layers=2,
  decoder_num_attention_heads=2,
  decoder_intermediate_size=4 * E,
)


def published():
  """Returns random arrays with the names of the authors' repository."""
  sizes = {
    'cls_token': (1, 1, D),
    'pos_embed': (1, 17, D),
    'patch_embed.proj': (D, 3, SIDE, SIDE),
    'norm': (D,),
    'mask_token': (1, 1, E),
    'decoder_pos_embed': (1, 17, E),
    'decoder_embed': (E, D),
    'decoder_norm': (E,),
    'decoder_pred': (SIDE**2 * 3, E),
  }
  for block, width in (
    ('blocks.0', D),
    *((f'decoder_blocks.{i}', E) for i in (0, 1)),
  ):
    sizes |= {
      f'{block}.norm1': (width,),
      f'{block}.attn.qkv': (3 * width, width),
      f'{block}.attn.proj': (width, width),
      f'{block}.norm2': (width,),
      f'{block}.mlp.fc1': (4 * width, width),
      f'{block}.mlp.fc2': (width, 4 * width),
    }
  found = {}
  for name, size in sizes.items():
    if name.endswith(('token', '_embed')) and name != 'decoder_embed':
      found[name] = RNG.normal(size=size)
    else:
      found[f'{name}.weight'] = RNG.normal(size=size) / size[-1] ** 0.5
      found[f'{name}.bias'] = RNG.normal(size=size[0])
  return {name: x.astype(np.float32) for name, x in found.items()}


WEIGHTS = published()


def of_hugging_face():
  """Returns `WEIGHTS` with the names of ViTMAEForPreTraining."""
  names = (
    ('cls_token', 'vit.embeddings.cls_token'),
    ('pos_embed', 'vit.embeddings.position_embeddings'),
    ('patch_embed.proj', 'vit.embeddings.patch_embeddings.projection'),
    ('norm.', 'vit.layernorm.'),
    ('blocks.', 'vit.encoder.layer.'),
    ('mask_token', 'decoder.mask_token'),
    ('decoder_blocks.', 'decoder.decoder_layers.'),
    ('decoder_', 'decoder.decoder_'),
  )
  parts = (
    ('.norm1.', '.layernorm_before.'),
    ('.norm2.', '.layernorm_after.'),
    ('.attn.proj.', '.attention.output.dense.'),
    ('.mlp.fc1.', '.intermediate.dense.'),
    ('.mlp.fc2.', '.output.dense.'),
  )
  found = {}
  for name, x in WEIGHTS.items():
    ours, theirs = next(row for row in names if name.startswith(row[0]))
    name = theirs + name.removeprefix(ours)
    for ours, theirs in parts:
      name = name.replace(ours, theirs)
    if '.attn.qkv.' in name:
      for i, part in enumerate(('query', 'key', 'value')):
        there = name.replace('attn.qkv', f'attention.attention.{part}')
        found[there] = np.split(x, 3)[i]
    else:
      found[name] = x
  return found


def paper_loss(normalize):
  """Returns the loss of `WEIGHTS` [B], with NumPy in float64."""
  w = {name: x.astype(np.float64) for name, x in WEIGHTS.items()}

  def dense(x, name):
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * w[f'{name}.weight'] + w[f'{name}.bias']

  def transformer(x, prefix, depth):  # of one image
    for i in range(depth):
      block = f'{prefix}blocks.{i}'
      y = dense(norm(x, f'{block}.norm1'), f'{block}.attn.qkv')
      heads, parts = [], np.split(y, 3 * HEADS[prefix], -1)
      for h in range(HEADS[prefix]):
        q, k, v = parts[h :: HEADS[prefix]]
        a = scipy.special.softmax(q @ k.T / np.sqrt(q.shape[-1]), -1)
        heads.append(a @ v)
      x = x + dense(np.concatenate(heads, -1), f'{block}.attn.proj')
      y = dense(norm(x, f'{block}.norm2'), f'{block}.mlp.fc1')
      y = y * 0.5 * (1 + scipy.special.erf(y / np.sqrt(2)))
      x = x + dense(y, f'{block}.mlp.fc2')
    return norm(x, f'{prefix}norm')

  losses = []
  for image, order in zip(IMAGES, ORDER, strict=True):
    pixels = ((image + 1) / 2 - MEAN) / STD
    cut = [
      pixels[i : i + SIDE, j : j + SIDE]
      for i in range(0, SIZE, SIDE)
      for j in range(0, SIZE, SIDE)
    ]
    kernel = w['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    tokens = np.stack([np.tensordot(x, kernel, 3) for x in cut])
    tokens = tokens + w['patch_embed.proj.bias'] + w['pos_embed'][0, 1:]
    token = w['cls_token'][0] + w['pos_embed'][0, :1]
    seen = np.concatenate([token, tokens[order[:K]]])
    seen = dense(transformer(seen, '', 1), 'decoder_embed')
    x = np.repeat(w['mask_token'][0], 16, axis=0)
    x[order[:K]] = seen[1:]
    x = np.concatenate([seen[:1], x]) + w['decoder_pos_embed'][0]
    x = dense(transformer(x, 'decoder_', 2), 'decoder_pred')[1:]
    target = np.stack(cut).reshape(16, -1)
    if normalize:
      target = target - target.mean(-1, keepdims=True)
      variance = (target**2).sum(-1, keepdims=True) / (target.shape[-1] - 1)
      target = target / np.sqrt(variance + 1e-6)
    losses.append(((x - target) ** 2).mean(-1)[order[K:]].mean())
  return np.array(losses)


@pytest.fixture(name='files', scope='module')
def fixture_files(tmp_path_factory):
  """Returns {layout: path} of `WEIGHTS`."""
  folder = tmp_path_factory.mktemp('mae')
  np.savez(folder / 'mae.npz', **WEIGHTS)
  safetensors.numpy.save_file(WEIGHTS, folder / 'mae.safetensors')
  (folder / 'hf').mkdir()
  (folder / 'hf' / 'config.json').write_text(json.dumps(CONFIG))
  (folder / 'hf' / 'preprocessor_config.json').write_text(
    json.dumps({'image_mean': MEAN, 'image_std': STD, 'size': SIZE})
  )
  safetensors.numpy.save_file(
    of_hugging_face(), folder / 'hf' / 'model.safetensors'
  )
  return folder


def make_config(path, **settings):
  config = digits_run.make_config(task='mae', labels='none', accum_steps=1)
  config.pretrained, config.batch = str(path), 8
  config.pp.crop = SIZE
  config.model.update(
    dict(name='testing', patch_size=SIDE, hidden_size=D, num_heads=4)
  )
  config.model.update(
    dict(num_layers=1, mlp_dim=4 * D, positions='sincos2d', dropout_rate=0.0)
  )
  config.update_from_flattened_dict(settings)
  return config


def started(config):
  """Returns (task, params) of a run before its first step."""
  config = adopted_settings.adopt(config)
  mesh = setup.check(config)
  loaded, _ = initial_weights.find(config)
  images = np.zeros((8, config.pp.crop, config.pp.crop, 3), np.uint8)
  split = images if config.labels == 'none' else (images, np.arange(8) % 2)
  given = vit_data.from_arrays(split, test=split)
  data = setup.load_data(config, mesh, given)
  parts = setup.make_parts(config, mesh, data)
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params
  )
  return parts.task, initial_weights.fit(loaded, config, parts, params)


@pytest.mark.parametrize(
  'name, normalize',
  [('mae.npz', True), ('mae.safetensors', False), ('hf', True), ('hf', False)],
)
def test_published_files_have_the_loss_of_the_paper(
  files, tmp_path, name, normalize
):
  path = files / name
  settings = {'mae.normalize': normalize, 'mae.decoder_heads': 2}
  if name == 'hf':  # its config.json contains them
    settings, path = {}, shutil.copytree(path, tmp_path / 'hf')
    text = json.dumps({**CONFIG, 'norm_pix_loss': normalize})
    (path / 'config.json').write_text(text)
  run, params = started(make_config(path, **settings))
  batch = {'image': IMAGES, 'order': ORDER}
  context = task.Context(key=jax.random.key(0), step=0)
  losses, _, _ = run.loss(params, batch, context)
  np.testing.assert_allclose(losses, paper_loss(normalize), rtol=1e-5)


def test_positions_of_the_decoder_fit_other_image_sizes(files):
  _, params = started(
    make_config(files / 'mae.npz', **{'pp.crop': 28, 'mae.decoder_heads': 2})
  )
  table = params['decoder']['Transformer']['posembed_input']['pos_embedding']
  given = WEIGHTS['decoder_pos_embed']
  np.testing.assert_array_equal(table[:, 0], given[:, 0])
  corners = table[0, 1:].reshape(7, 7, E)[::6, ::6]
  np.testing.assert_allclose(
    corners, given[0, 1:].reshape(4, 4, E)[::3, ::3], rtol=1e-6
  )


def test_without_a_decoder_it_is_random_and_the_run_says_so(
  files, tmp_path, capsys
):
  encoder = {
    name: x
    for name, x in WEIGHTS.items()
    if not name.startswith(('decoder', 'mask'))
  }
  np.savez(tmp_path / 'encoder.npz', **encoder)
  config = make_config(tmp_path / 'encoder.npz')
  config.mae.update(dict(decoder_size=8, decoder_layers=1, decoder_heads=2))
  _, params = started(config)
  assert 'has no decoder' in capsys.readouterr().err
  table = params['encoder']['Transformer']['posembed_input']['pos_embedding']
  np.testing.assert_array_equal(table, WEIGHTS['pos_embed'])
  assert 'posembed_input' not in params['decoder']['Transformer']


def test_settings_that_contradict_the_decoder_are_refused(files):
  for name, setting in (('hf', 'heads'), ('mae.npz', 'size')):
    found = {'heads': 2, 'size': 8}[setting]
    with pytest.raises(ValueError, match=f'{setting}=24, .* with {found}'):
      started(make_config(files / name, **{f'mae.decoder_{setting}': 24}))


def test_such_files_have_an_encoder_for_other_uses(files):
  found = [
    trained_model.load_model(
      str(files / name), overrides=None if name == 'hf' else {'num_heads': 4}
    )
    for name in ('hf', 'mae.npz', 'mae.safetensors')
  ]
  for other in found[1:]:
    jax.tree.map(np.testing.assert_array_equal, other.params, found[0].params)
    for name in ('gelu', 'norm_epsilon', 'image_mean', 'classifier'):
      assert getattr(other.model, name) == getattr(found[0].model, name)


@pytest.mark.parametrize('by_weights', [True, False])
@pytest.mark.parametrize('name', ['mae.npz', 'mae.safetensors', 'hf'])
def test_fine_tuning_starts_with_every_array_of_the_encoder(
  files, name, by_weights
):
  """Also with the recipe of the authors: a norm after the mean."""
  config = make_config(files / name, task='classification', labels='')
  config.model.positions = None
  if by_weights:  # as configs/vit.py:PATH
    sizes = 'patch_size', 'hidden_size', 'num_layers', 'mlp_dim'
    config.model.update(dict.fromkeys(sizes))
    config.model.name = 'weights'
  _, params = started(config)
  given = trained_model.load_model(str(files / 'hf')).params
  assert params.pop('head')['kernel'].shape == (D, 2)
  jax.tree.map(np.testing.assert_array_equal, params, given)
  config.model.update(
    dict(classifier='gap', head_norm=True, encoder_norm=False)
  )
  _, params = started(config)
  assert set(params.pop('head_norm')) == {'scale', 'bias'}
  del params['head'], given['cls'], given['Transformer']['encoder_norm']
  positions = given['Transformer']['posembed_input']
  positions['pos_embedding'] = positions['pos_embedding'][:, 1:]
  jax.tree.map(np.testing.assert_array_equal, params, given)


@pytest.mark.slow
def test_commands_measure_the_encoder_and_refuse_to_predict(
  files, tmp_path, capsys
):
  tiny_run.write_photos(tmp_path / 'photos')
  photos, found = str(tmp_path / 'photos'), []
  for name in ('hf', 'mae.safetensors'):
    weights = [str(files / name)]
    weights += ['--config.model.num_heads=4'] if name != 'hf' else []
    table = str(tmp_path / f'{name}.npz')
    assert embed.main([*weights, photos, f'--out={table}']) == 0
    found.append(np.load(table)['feature'])
    weights += [f'--dataset={photos}', f'--workdir={tmp_path}']
    evaluators = '--with=knn,few_shot,linear_probe', '--few_shot.shots=1,5'
    fewer = '--linear_probe.l2_strengths=0.01'
    assert evaluate.main([*weights, *evaluators, fewer, '--json']) == 0
    row = json.loads(capsys.readouterr().out)
    for key in ('k10_knn', '5shot_few_shot', 'linear_probe'):
      assert row[f'accuracy_{key}'] > 1 / 3
    for command, arguments in (
      (evaluate, weights),
      (predict, [*weights[:-2], photos]),
    ):
      with pytest.raises(SystemExit) as error:
        command.main(arguments)
      message = capsys.readouterr().err
      assert error.value.code == 2 and 'Traceback' not in message
      assert f'{files / name}: the weights have no head' in message
  np.testing.assert_allclose(*found, atol=1e-3)  # of other resizing


@pytest.mark.parametrize('width', [16, 768])
def test_no_number_of_heads_is_guessed(width, tmp_path):
  """Also for the widths of published models."""
  path = str(tmp_path / 'mae.npz')
  np.savez(path, **{'decoder_embed.weight': np.zeros((8, width), np.float32)})
  assert 'num_heads' not in metadata.of_weights(path).settings
