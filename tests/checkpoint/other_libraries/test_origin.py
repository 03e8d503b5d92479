"""Where the facts of a model come from: user, config.json, arrays; no guess."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from tests import placed_values
from tests.checkpoint import test_narrow_models
import vit_jax
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.other_libraries import hugging_face
from vit_jax.checkpoint.other_libraries import hugging_face_images
from vit_jax.checkpoint.other_libraries import hugging_face_names
from vit_jax.checkpoint.other_libraries import origin
from vit_jax.checkpoint.other_libraries import timm_config
from vit_jax.checkpoint.other_libraries import timm_settings
from vit_jax.checkpoint.other_libraries import timm_table
from vit_jax.data import class_names
from vit_jax.data import data_settings
from vit_jax.export import formats
from vit_jax.models import param_paths

WIDTH = 24
ARGS = dict(embed_dim=WIDTH, depth=1, num_heads=3, mlp_ratio=1.5, img_size=32)
GEOMETRY = {'crop_pct': 1.0, 'interpolation': 'bicubic'}
HALF = {'mean': [0.5] * 3, 'std': [0.5] * 3}
TABLE = 'relative_position_bias.relative_position_bias_table'
CLIP = {'mean': [0.48, 0.46, 0.41], 'std': [0.27, 0.26, 0.28]}


def timm_arrays(channels=3, num_positions=5):
  """Returns random arrays of a tiny Vision Transformer of timm."""
  rng = np.random.default_rng(0)
  dense = {
    'blocks.0.attn.qkv': (3 * WIDTH, WIDTH),
    'blocks.0.attn.proj': (WIDTH, WIDTH),
    'blocks.0.mlp.fc1': (36, WIDTH),
    'blocks.0.mlp.fc2': (WIDTH, 36),
    'patch_embed.proj': (WIDTH, channels, 16, 16),
    'head': (5, WIDTH),
  }
  shapes = {'cls_token': (1, 1, WIDTH), 'pos_embed': (1, num_positions, WIDTH)}
  for name, shape in dense.items():
    shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
  for name in ('blocks.0.norm1', 'blocks.0.norm2', 'norm'):
    shapes |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def write(folder, config=None, **options):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(
    timm_arrays(**options), folder / 'model.safetensors'
  )
  if config is not None:
    (folder / 'config.json').write_text(json.dumps(config))
  return str(folder)


def timm_json(architecture='vit_base_patch16_224', args=None, **published):
  return {
    'architecture': architecture,
    'model_args': ARGS | (args or {}),
    'pretrained_cfg': HALF | GEOMETRY | published,
  }


def test_a_config_of_timm_decides(tmp_path):
  published = dict(
    CLIP,
    interpolation='bicubic',
    crop_pct=0.9,
    license='mit',
    crop_mode='center',
  )
  trained = vit_jax.load(write(tmp_path, timm_json(**published)))
  model = trained.model
  assert (model.gelu, model.num_heads, model.norm_epsilon) == ('exact', 3, 1e-6)
  assert (model.image_mean, model.image_std) == (
    tuple(CLIP['mean']),
    tuple(CLIP['std']),
  )
  resizing = trained.resizing
  assert (resizing.resize, resizing.crop_fraction) == ('crop', 0.9)
  assert resizing.interpolation == 'bicubic_antialias'
  assert trained.image_size == (32, 32)
  assert 'license mit' in str(trained)


@pytest.mark.parametrize(
  'args, settings',
  [
    (dict(act_layer='gelu_tanh'), dict(gelu='tanh')),
    (dict(act_layer='quick_gelu'), dict(gelu='quick')),
    (dict(num_heads=6), dict(num_heads=6)),
    (dict(init_values=1e-5), dict(layer_scale=1e-4)),
    (dict(img_size=[32, 48]), dict(classifier='token')),
    (dict(global_pool='avg'), dict(classifier='gap', head_norm=True)),
    (
      dict(global_pool='avg', fc_norm=False),
      dict(classifier='gap', positions='learned'),
    ),
    (dict(pre_norm=True), dict(pre_norm=True)),
    (dict(reg_tokens=2), dict(num_registers=2)),
    (dict(mlp_ratio=2), dict(mlp_dim=2 * WIDTH)),
  ],
  ids=str,
)
def test_arguments_of_timm_replace_facts(args, settings):
  facts = timm_config.facts_of(timm_json(args=args))
  found = timm_settings.settings_of(facts)
  assert settings.items() <= found.items()
  assert ('head_norm' in found) == ('head_norm' in settings)
  assert facts['img_size'] == args.get('img_size', [32, 32])


def test_unknown_names_and_arguments():
  with pytest.raises(ValueError, match='vit_bse.*vit_base_patch16_224'):
    timm_table.facts_of('vit_bse_patch16_224')
  with pytest.raises(ValueError, match="mystery='x'"):
    timm_config.facts_of(timm_json(args=dict(mystery='x')))
  with pytest.raises(ValueError, match="'relu'.*gelu_tanh"):
    timm_config.facts_of(timm_json(args=dict(act_layer='relu')))
  with pytest.raises(ValueError, match="'vitt'.*vit"):
    hugging_face.facts_of({'model_type': 'vitt'})
  with pytest.raises(ValueError, match='siglip2: NaFlex'):
    hugging_face.facts_of({'model_type': 'siglip2'})


def test_open_settings_are_asked_for_at_once(tmp_path, capsys):
  path = write(tmp_path / 'w')
  with pytest.raises(ValueError) as error:
    vit_jax.load(path)
  for text in (
    'config.model.num_heads=',
    'config.model.gelu=exact, tanh',
    'config.model.classifier=token or gap',
    'config.model.norm_epsilon=',
    'config.model.image_mean=(0.5,0.5,0.5)',
  ):
    assert text in str(error.value)
  given = dict(
    num_heads=3,
    gelu='quick',
    classifier='token',
    norm_epsilon=1e-5,
    image_mean=(0.5,) * 3,
    image_std=(0.5,) * 3,
  )
  model = vit_jax.load(path, **given).model
  assert given.items() <= {n: getattr(model, n) for n in given}.items()
  logged = 'resize=squash, crop_fraction=1.0, interpolation=bilinear are used'
  assert logged in capsys.readouterr().err
  # A config without mean and deviation leaves only these open.
  config = {'model_type': 'vit', 'hidden_size': WIDTH}
  (tmp_path / 'w/config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='image_mean') as error:
    vit_jax.load(path)
  assert 'gelu' not in str(error.value)


def test_open_settings_of_bare_files_of_hugging_face(tmp_path):
  shapes = {
    'vit.embeddings.patch_embeddings.projection.weight': (24, 3, 16, 16),
    'vit.encoder.layer.0.attention.output.dense.weight': (24, 24),
  }
  token = {'vit.embeddings.cls_token': (1, 1, 24)}
  table = {f'vit.encoder.layer.0.attention.attention.{TABLE}': (12, 3)}
  file = tmp_path / 'model.safetensors'
  for more, asked, not_asked in (
    ({}, ('num_heads=1 or 2', 'positions'), ('classifier',)),
    (token, ('num_heads', 'classifier'), ()),
    (token | table, ('classifier', 'gelu'), ('num_heads', 'positions')),
  ):
    arrays = {x: np.ones(y, np.float32) for x, y in (shapes | more).items()}
    safetensors.numpy.save_file(arrays, file)
    with pytest.raises(ValueError, match='does not determine') as error:
      vit_jax.load(str(file))
    assert all(f'config.model.{x}' in str(error.value) for x in asked)
    assert not any(f'config.model.{x}' in str(error.value) for x in not_asked)


def test_a_user_has_priority_over_a_config(tmp_path):
  path = write(tmp_path, timm_json())
  assert vit_jax.load(path, gelu='tanh', num_heads=6).model.num_heads == 6
  assert vit_jax.load(path, gelu='tanh').model.gelu == 'tanh'


@pytest.mark.parametrize(
  'args', [dict(img_size=64), dict(depth=2), dict(embed_dim=48)], ids=str
)
def test_a_config_that_contradicts_its_arrays(tmp_path, args):
  with pytest.raises(ValueError, match='model.safetensors|the file'):
    vit_jax.load(write(tmp_path, timm_json(args=args)))


def test_class_tokens_on_a_grid_that_is_not_square(tmp_path):
  """With `no_embed_class`, all positions of timm belong to patches."""
  args = dict(no_embed_class=True, img_size=[32, 48])
  trained = vit_jax.load(write(tmp_path, timm_json(args=args), num_positions=6))
  found = trained.params['Transformer']['posembed_input']['pos_embedding']
  np.testing.assert_array_equal(found[:, 0], 0)
  np.testing.assert_array_equal(
    found[:, 1:], timm_arrays(num_positions=6)['pos_embed']
  )


def test_other_channels_reject_rgb(tmp_path):
  trained = vit_jax.load(write(tmp_path / 'w', timm_json(), channels=4))
  assert trained.params['embedding']['kernel'].shape[2] == 4
  with pytest.raises(ValueError, match='3 channels.* 4 channels'):
    trained.logits(np.full((1, 32, 32, 3), -0.5, np.float32))


def test_export_gives_a_config_of_timm_back(tmp_path):
  published = dict(CLIP, interpolation='bicubic', crop_pct=0.9, license='mit')
  args = dict(no_embed_class=True)
  path = write(
    tmp_path / 'w', timm_json(args=args, **published), num_positions=4
  )
  trained = vit_jax.load(path)
  formats.export(trained, str(tmp_path / 'out/'))
  config = json.loads((tmp_path / 'out/config.json').read_text())
  assert config['architecture'] == 'vit_base_patch16_224'
  assert ARGS.items() <= {**config['model_args'], 'img_size': 32}.items()
  found = config['pretrained_cfg']
  assert published.items() <= found.items()
  arrays = safetensors.numpy.load_file(tmp_path / 'out/model.safetensors')
  for name, array in timm_arrays(num_positions=4).items():
    np.testing.assert_array_equal(arrays[name], array)
  again = trained_model.load_model(str(tmp_path / 'out'))
  assert again.model == trained.model and again.license == 'mit'
  assert again.resizing == trained.resizing
  for name, array in weights_file.flatten(trained.params).items():
    np.testing.assert_array_equal(
      weights_file.flatten(again.params)[name], array
    )


@pytest.mark.parametrize(
  'name, architecture',
  [('S_16', 'vit_base_patch16_224'), ('R26_S_32', 'vit_small_r26_s32_224')],
)
def test_a_copy_of_a_published_file_behaves_like_the_original(
  name, architecture, tmp_path, capsys
):
  """Predictions do not depend on the server that has answered."""
  geometry = dict(crop_pct=0.9, interpolation='bicubic')
  args = dict(img_size=224) if 'r26' in architecture else {}
  write(tmp_path / name, timm_json(architecture, args, **geometry))
  path, found = trained_model.locate(name, folder=str(tmp_path))
  assert path.endswith(f'{name}/model.safetensors')
  assert not found.settings.keys() & {'gelu', 'norm_epsilon', 'stem_epsilons'}
  assert found.resizing == data_settings.DEFAULT_RESIZING
  logged = capsys.readouterr().err
  assert 'gelu is that of the original' in logged
  assert ('stem_epsilons is' in logged) == ('r26' in architecture)
  assert 'resize=squash' in logged and 'interpolation=bilinear' in logged
  # By its path, the same folder is a model of timm.
  stored = metadata.of_weights(path)
  assert stored.settings['gelu'] == 'exact'
  assert stored.resizing.crop_fraction == 0.9
  adopted = init_weights.adopt(path, None, is_copy=True)
  assert adopted.resizing == data_settings.DEFAULT_RESIZING


@pytest.mark.parametrize(
  'kind, settings',
  [
    ('vit', dict(gelu='exact', norm_epsilon=1e-12, classifier='token')),
    ('dinov2', dict(layer_scale=1e-4, patch_size=14, mlp_dim=3072)),
    ('dinov3_vit', dict(rotary='normalized', key_bias=False, positions='none')),
    ('clip', dict(gelu='quick', pre_norm=True, patch_bias=False)),
    ('siglip', dict(gelu='tanh', classifier='map', class_token=False)),
    ('aimv2', dict(norm='rms', norm_epsilon=1e-5, classifier='probe')),
    ('vit-hybrid', dict(stem_units=(3, 4, 9), stem_epsilons='timm')),
    ('vit_mae', dict(norm_epsilon=1e-12)),
  ],
)
def test_defaults_of_hugging_face(kind, settings):
  config = {'model_type': kind, 'vision_config': {}}
  found = origin.read(config, {}).settings
  assert settings.items() <= found.items()


def test_preparation_of_hugging_face():
  size = {'shortest_edge': 256}
  preprocessor = dict(
    size=size,
    do_center_crop=True,
    crop_size={'height': 224, 'width': 224},
    resample=3,
    image_mean=CLIP['mean'],
    image_std=CLIP['std'],
  )
  found = origin.read({'model_type': 'dinov3_vit'}, preprocessor)
  assert found.resizing.crop_fraction == 224 / 256
  assert found.resizing.resize == 'crop' and found.image_size == (224, 224)
  assert found.mean == pytest.approx(CLIP['mean'])
  # Pixels in 0…255 are not scaled to 0…1, so mean and deviation are larger.
  found = origin.read(
    {'model_type': 'vit'},
    dict(preprocessor, do_rescale=False, image_mean=[127.5] * 3),
  )
  assert found.mean == pytest.approx((0.5,) * 3)


@pytest.mark.parametrize(
  'kind, more, expected',
  [
    ('vit', {}, ('squash', 1, 'bilinear', 256)),
    ('deit', {}, ('squash', 224 / 256, 'bicubic', 224)),
    ('beit', {}, ('squash', 1, 'bicubic', 256)),
    ('clip', {}, ('crop', 224 / 256, 'bicubic', 224)),
    ('dinov2', {}, ('crop', 224 / 256, 'bicubic', 224)),
    ('dinov2', dict(do_center_crop=False), ('crop', 1, 'bicubic', 256)),
    ('clip', dict(crop_size=128), ('crop', 0.5, 'bicubic', 128)),
    ('dinov3_vit', {}, ('squash', 1, 'bilinear', 256)),
    # A named class has priority over the model type.
    (
      'vit',
      dict(feature_extractor_type='CLIPFeatureExtractor'),
      *[('crop', 224 / 256, 'bicubic', 224)],
    ),
    (
      'clip',
      dict(image_processor_type='ViTImageProcessorFast'),
      *[('squash', 1, 'bilinear', 256)],
    ),
    ('vit', dict(resample=1), ('squash', 1, 'lanczos', 256)),
  ],
)
def test_the_image_processor_decides_what_its_file_leaves_open(
  kind, more, expected
):
  config = {'model_type': kind, 'vision_config': {}}
  found = hugging_face_images.preparation_of(
    {'size': 256, **more}, hugging_face.tower_of(config)[0]
  )
  assert (
    *(found['resize'], found.get('crop_fraction', 1)),
    *(found['interpolation'].removesuffix('_antialias'), found['size'][0]),
  ) == expected


@pytest.mark.parametrize(
  'kind, preprocessor, message',
  [
    ('vit', dict(image_processor_type='MyImageProcessor'), "'MyImageP.*CLIP"),
    ('siglip', dict(size=224), 'size=224.*shortest_edge, or height'),
    ('clip', dict(size=64), '224 x 224 pixels .* 64 x 64. Set do_center_crop'),
    ('beit', dict(size=256, crop_size=224), 'Set do_center_crop to true'),
  ],
)
def test_preparation_that_no_file_determines(kind, preprocessor, message):
  config = {'model_type': kind, 'vision_config': {}}
  with pytest.raises(ValueError, match=message):
    origin.read(config, preprocessor)


def test_every_model_type_has_an_image_processor():
  for kind in hugging_face.model_types():
    config = {'model_type': kind, 'vision_config': {}}
    size = {'height': 64, 'width': 64}
    preprocessor = {'size': size, 'do_center_crop': False}
    assert origin.read(config, preprocessor).resizing.resize == 'squash'


@pytest.mark.parametrize(
  'architecture, published, expected',
  [
    ('vit_base_patch16_224', dict(tag='bamboo'), (1.0, 'bicubic')),
    ('vit_base_patch16_224.mae', {}, (0.9, 'bicubic')),
    ('vit_base_patch16_224.mae', dict(crop_pct=0.5), (0.5, 'bicubic')),
    ('vit_tiny_patch16_224', {}, (0.9, 'bicubic')),  # all files agree
    (
      'resnetv2_50x1_bit',
      dict(crop_pct=0.8, interpolation='bilinear', num_classes=512),
      (0.8, 'bilinear'),
    ),
  ],
)
def test_published_files_complete_a_config_of_timm(
  architecture, published, expected
):
  config = {'architecture': architecture, 'pretrained_cfg': published}
  resizing = origin.read(config, {}).resizing
  assert (resizing.crop_fraction, resizing.interpolation) == (
    *(expected[0], f'{expected[1]}_antialias'),
  )


@pytest.mark.parametrize(
  'architecture, published, message',
  [
    ('vit_base_patch16_224', {}, 'no crop_pct, and published.*0.9, 1.0.'),
    ('resnetv2_50x1_bit', dict(crop_pct=1), 'no interpolation. Write'),
  ],
)
def test_crops_and_filters_are_not_guessed(architecture, published, message):
  config = {'architecture': architecture, 'pretrained_cfg': published}
  with pytest.raises(ValueError, match=message):
    origin.read(config, {})


@pytest.mark.parametrize(
  'num_classes, more, output',
  [
    (512, dict(tag='openai'), 'identity'),
    (512, dict(tag='openai', label_names=['x'] * 512), 'softmax'),
    (1000, dict(tag='openai'), 'softmax'),
    (768, {}, 'softmax'),  # not the size of its embeddings
    (512, dict(tag='laion2b_ft_in1k'), None),
    (512, {}, None),
  ],
)
def test_outputs_of_clip_are_embeddings_only_in_published_files(
  num_classes, more, output
):
  config = {
    'architecture': 'vit_base_patch16_clip_224',
    'num_classes': num_classes,
    'pretrained_cfg': GEOMETRY | more,
  }
  if output:
    assert origin.read(config, {}).output == output
    return
  with pytest.raises(ValueError, match="=512.*write label_names.*'openai'"):
    origin.read(config, {})


def test_preparation_that_vit_jax_does_not_have():
  config = {'architecture': 'vit_tiny_patch16_224', 'pretrained_cfg': {}}
  for mode, resize in (
    (None, 'crop'),
    ('center', 'crop'),
    ('squash', 'squash'),
  ):
    config['pretrained_cfg'] = {'crop_mode': mode}
    assert origin.read(config, {}).resizing.resize == resize
  config['pretrained_cfg'] = {'crop_mode': 'border'}
  with pytest.raises(ValueError, match='crop_mode=border'):
    origin.read(config, {})
  for size in ({}, {'longest_edge': 224}, {'height': 224}):
    with pytest.raises(ValueError, match='needs shortest_edge, or height and'):
      origin.read({'model_type': 'vit'}, {'size': size, 'resample': 3})


def test_names_of_hugging_face_in_both_directions():
  rng = np.random.default_rng(0)
  arrays = {
    f'vision_model.{name}': rng.normal(size=shape).astype(np.float32)
    for name, shape in {
      'embeddings.class_embedding': (4,),
      'embeddings.position_embedding.weight': (5, 4),
      'pre_layrnorm.weight': (4,),
      'head.attention.in_proj_weight': (12, 4),
      'head.attention.in_proj_bias': (12,),
      'encoder.layers.10.self_attn.k_proj.weight': (4, 4),
      'encoder.layers.10.layer_norm2.bias': (4,),
    }.items()
  }
  arrays['visual_projection.weight'] = np.ones((7, 4), np.float32)
  unread = {
    'text_model.embeddings.token_embedding.weight': np.ones((9, 4)),
    'logit_scale': np.ones(()),
  }
  found = hugging_face_names.to_linen(
    hugging_face_names.plain(arrays | unread), num_heads=2
  )
  block, attention = 'Transformer/encoderblock_10', param_paths.ATTENTION
  assert {name: x.shape for name, x in found.items()} == {
    'cls': (1, 1, 4),
    'Transformer/posembed_input/pos_embedding': (1, 5, 4),
    'Transformer/pre_norm/scale': (4,),
    **{
      f'MAPHead_0/{attention}/{name}/{kind}': shape
      for name in ('query', 'key', 'value')
      for kind, shape in (('kernel', (4, 2, 2)), ('bias', (2, 2)))
    },
    f'{block}/{attention}/key/kernel': (4, 2, 2),
    f'{block}/LayerNorm_1/bias': (4,),
    'head/kernel': (4, 7),
    'head/bias': (7,),
  }
  back = hugging_face_names.from_linen(
    found, 'clip', 'vision_model.', 'visual_projection'
  )
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)
  # The projection has no bias, so ours must be zero.
  found['head/bias'] = np.ones(7)
  with pytest.raises(ValueError, match='head/bias'):
    hugging_face_names.from_linen(found, 'clip', '', 'visual_projection')


def test_the_second_token_of_deit_is_a_register():
  arrays = {
    'embeddings.cls_token': np.full((1, 1, 4), 1.0),
    'embeddings.distillation_token': np.full((1, 1, 4), 2.0),
    'embeddings.position_embeddings': np.arange(24.0).reshape(1, 6, 4),
  }
  found = hugging_face_names.to_linen(arrays, num_heads=1)
  positions = found['Transformer/posembed_input/pos_embedding']
  np.testing.assert_array_equal(positions[0, :, 0], [0, 8, 12, 16, 20])
  np.testing.assert_array_equal(found['registers'][0, 0], [6, 7, 8, 9])
  back = hugging_face_names.from_linen(found, 'deit', '', 'classifier')
  assert {k: x.shape for k, x in back.items()} == {
    k: x.shape for k, x in arrays.items()
  }
  for name, array in hugging_face_names.to_linen(back, num_heads=1).items():
    np.testing.assert_array_equal(array, found[name], err_msg=name)


@pytest.mark.parametrize(
  'kind, values, message',
  [
    ('aimv2_vision_model', dict(is_native=True), 'is_native=True'),
    ('vit-hybrid', dict(backbone_config={'num_groups': 8}), 'num_groups=8'),
    ('dinov3_vit', dict(value_bias=False), 'biases of only some'),
    (
      'beit',
      dict(
        use_relative_position_bias=True, use_shared_relative_position_bias=True
      ),
      'use_shared_relative_position_bias',
    ),
    ('vit', dict(pooler_act='relu'), 'pooler_act=relu'),
  ],
)
def test_models_of_hugging_face_that_are_refused(kind, values, message):
  with pytest.raises(ValueError, match=message):
    hugging_face.facts_of({'model_type': kind, **values})


@pytest.mark.parametrize(
  'version, prefix',
  [('4.40.0', 'vision_model.'), ('5.24.0', ''), (None, 'vision_model.')],
)
def test_the_prefix_of_a_tower_depends_on_the_version(
  version, prefix, tmp_path
):
  """transformers 4 needs it; transformers 5 saves none, and reads both."""
  trained = test_narrow_models.load(tmp_path, 'hf_clip')
  origin = {**trained.origin, 'transformers_version': version}
  trained = dataclasses.replace(trained, origin=origin)
  formats.export(trained, str(tmp_path / 'out/'))
  before, after = (
    safetensors.numpy.load_file(folder / 'model.safetensors')
    for folder in (tmp_path, tmp_path / 'out')
  )
  assert {prefix + name for name in before} == after.keys()


def test_export_gives_a_config_of_hugging_face_back(tmp_path):
  trained = test_narrow_models.load(tmp_path, 'hf_vit')
  names = tuple('abcdefg')
  trained = dataclasses.replace(
    trained,
    model=trained.model.clone(image_mean=(0.4,) * 3, image_std=(0.2,) * 3),
    class_names=names,
    output='sigmoid',
    license='mit',
    resizing=data_settings.Resizing('crop', 0.8, 'bicubic_antialias'),
  )
  formats.export(trained, str(tmp_path / 'out/'))
  config, preprocessor = (
    json.loads((tmp_path / f'out/{name}.json').read_text())
    for name in ('config', 'preprocessor_config')
  )
  assert config['architectures'] == ['ViTForImageClassification']
  assert config['id2label'] == {str(i): x for i, x in enumerate(names)}
  assert config['problem_type'] == 'multi_label_classification'
  assert (config['model_type'], config['license']) == ('vit', 'mit')
  assert preprocessor['size'] == {'shortest_edge': 40}
  assert preprocessor['crop_size'] == {'height': 32, 'width': 32}
  assert (preprocessor['image_mean'], preprocessor['resample']) == (
    [0.4] * 3,
    3,
  )
  # Without our own metadata, the folder still describes the same model.
  del config['vit_jax']
  (tmp_path / 'out/config.json').write_text(json.dumps(config))
  again = vit_jax.load(tmp_path / 'out')
  assert again.model == trained.model and again.class_names == names
  assert again.resizing == trained.resizing
  assert (again.output, again.task) == ('sigmoid', 'multi_label')


@pytest.mark.parametrize(
  'changes, output, task, names',
  [
    ({}, 'softmax', 'classification', None),
    (dict(problem_type=None), 'softmax', 'classification', None),
    (
      dict(problem_type='multi_label_classification'),
      *('sigmoid', 'multi_label', None),
    ),
    (
      dict(problem_type='regression', id2label={'0': 'weight', '1': 'age'}),
      *('identity', 'regression', ('weight', 'age')),
    ),
    (
      dict(problem_type='regression'),
      *('identity', 'regression', ('LABEL_0', 'LABEL_1')),
    ),
    (
      dict(id2label={'0': 'LABEL_0'}),
      *('identity', 'regression', ('LABEL_0',)),
    ),
    (
      dict(architectures=['ViTModel'], id2label={'0': 'LABEL_0'}),
      *('softmax', 'classification', None),
    ),
  ],
)
def test_the_problem_of_hugging_face_decides_the_output(
  changes, output, task, names, tmp_path
):
  config = dict(model_type='vit', architectures=['ViTForImageClassification'])
  (tmp_path / 'config.json').write_text(json.dumps(config | changes))
  found = metadata.of_weights(str(tmp_path))
  assert (found.output, found.task) == (output, task)
  assert names == (found.targets and found.targets.names)
  with pytest.raises(ValueError, match="'ranking'.*regression"):
    origin.read(config | dict(problem_type='ranking'), {})


def test_values_of_a_regression_are_those_of_the_head(tmp_path):
  test_narrow_models.load(tmp_path, 'hf_vit')
  path = tmp_path / 'config.json'
  config = json.loads(path.read_text())
  config['problem_type'] = 'regression'
  config['id2label'] = {str(i): name for i, name in enumerate('abcdefg')}
  path.write_text(json.dumps(config))
  trained = vit_jax.load(tmp_path)
  assert trained.shown_class_names == tuple('abcdefg')
  images = placed_values.images(trained.image_size)
  np.testing.assert_array_equal(trained.predict(images), trained.logits(images))
  formats.export(trained, str(tmp_path / 'out/'))
  back = json.loads((tmp_path / 'out/config.json').read_text())
  assert (back['problem_type'], back['id2label']) == (
    *('regression', config['id2label']),
  )
  config['id2label'].pop('6')
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match='6 targets.* 7 outputs'):
    vit_jax.load(tmp_path)
  # transformers cannot say these settings, and neither can timm.
  for changes in (dict(norm_after=True), dict(classifier='gap')):
    changed = dataclasses.replace(trained, model=trained.model.clone(**changes))
    with pytest.raises(ValueError, match='timm has no equivalent'):
      formats.export(changed, str(tmp_path / 'changed/'))


def test_adapters_quantized_weights_and_pickles(tmp_path):
  path = write(tmp_path / 'a', {'quantization_config': {}})
  with pytest.raises(ValueError, match='quantized'):
    weights_file.load(path)
  path = write(tmp_path / 'b')
  (tmp_path / 'b/adapter_config.json').write_text('{}')
  with pytest.raises(ValueError, match='adapter'):
    weights_file.load(path)
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c/pytorch_model.bin').write_bytes(b'')
  with pytest.raises(ValueError, match='torch.load.*\n.*save_file'):
    weights_file.load(tmp_path / 'c')


def test_labels_of_imagenet_match_wordnet_ids():
  labels = [
    f'{name.partition(" (")[0]}, other words'
    for name in class_names.imagenet(1000)
  ]
  found = class_mapping.index_of(tuple(labels), 1000)
  assert found['n01440764'] == 0 and found['tench, other words'] == 0
  shuffled = class_mapping.index_of(tuple(labels[::-1]), 1000)
  assert 'n01440764' not in shuffled


def exported(tmp_path):
  """Exports a classifier of Hugging Face with several labels per image."""
  (tmp_path / 'in').mkdir()
  trained = dataclasses.replace(
    test_narrow_models.load(tmp_path / 'in', 'hf_vit'),
    class_names=tuple('abcdefg'),
    output='sigmoid',
    task='multi_label',
    thresholds=(0.3,) * 7,
  )
  formats.export(trained, str(tmp_path / 'out/'))
  config = json.loads((tmp_path / 'out/config.json').read_text())
  return trained, tmp_path / 'out', config


def test_a_model_that_transformers_saved_again_has_its_new_classes(
  tmp_path, capsys
):
  """`save_pretrained` keeps our key, and writes its own header."""
  trained, folder, config = exported(tmp_path)
  assert vit_jax.load(folder).thresholds == trained.thresholds
  weights = folder / 'model.safetensors'
  safetensors.numpy.save_file(
    safetensors.numpy.load_file(weights), weights, {'format': 'pt'}
  )
  config['id2label'] = {str(i): name for i, name in enumerate('tuvwxyz')}
  config['problem_type'] = 'single_label_classification'
  (folder / 'config.json').write_text(json.dumps(config))
  again = vit_jax.load(folder)
  assert 'the key vit_jax of its export is ignored' in capsys.readouterr().err
  assert again.class_names == tuple('tuvwxyz')
  assert (again.output, again.task) == ('softmax', 'classification')
  assert again.thresholds is None and 'vit_jax' not in again.origin
  for name, array in weights_file.flatten(trained.params).items():
    found = weights_file.flatten(again.params)[name]
    np.testing.assert_array_equal(found, array, err_msg=name)


@pytest.mark.parametrize(
  'key, value',
  [
    ('id2label', {str(i): name for i, name in enumerate('tuvwxyz')}),
    ('problem_type', 'regression'),
  ],
)
def test_a_config_that_contradicts_our_metadata(key, value, tmp_path):
  _, folder, config = exported(tmp_path)
  (folder / 'config.json').write_text(json.dumps(config | {key: value}))
  with pytest.raises(ValueError, match=f'{key} contradicts the key vit_jax'):
    vit_jax.load(folder)


def test_a_config_describes_weights_with_another_name(tmp_path, capsys):
  write(tmp_path, timm_json())
  weights = tmp_path / 'model.safetensors'
  other = weights.rename(tmp_path / 'my.safetensors')
  trained = vit_jax.load(other)
  assert (trained.model.gelu, trained.model.num_heads) == ('exact', 3)
  assert f'{tmp_path / "config.json"} is used' in capsys.readouterr().err
  # Metadata with the name of the file has priority.
  described = dataclasses.replace(trained.description, class_names=('x',) * 5)
  (tmp_path / 'my.safetensors.json').write_text(json.dumps(described.to_json()))
  assert metadata.of_weights(str(other)).class_names == ('x',) * 5
  # The config of another model does not describe weights that vit_jax wrote.
  weights_file.save(tmp_path / 'ours.safetensors', trained.params)
  assert metadata.of_weights(str(tmp_path / 'ours.safetensors')).name is None
  # An export that was renamed is still described.
  formats.export(trained, str(tmp_path / 'out/'))
  renamed = tmp_path / 'out/new.safetensors'
  (tmp_path / 'out/model.safetensors').rename(renamed)
  assert vit_jax.load(renamed).model == trained.model


@pytest.mark.parametrize('preprocessor', [None, {'size': 32}])
def test_resizing_that_no_file_contains_is_logged(
  preprocessor, tmp_path, capsys
):
  test_narrow_models.load(tmp_path, 'hf_vit')
  (tmp_path / 'preprocessor_config.json').unlink()
  if preprocessor:
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
  statistics = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
  trained = vit_jax.load(tmp_path, **statistics)
  is_default = trained.resizing == data_settings.DEFAULT_RESIZING
  assert is_default == (not preprocessor)
  assert ('set config.pp.resize' in capsys.readouterr().err) == is_default
