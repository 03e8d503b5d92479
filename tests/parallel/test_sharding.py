import functools
import types

import jax
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from tests import classifier
from vit_jax import base_config
from vit_jax import models
from vit_jax import train_state
from vit_jax.optim import optimizer
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing
from vit_jax.tasks import classification

P = PartitionSpec
MODEL = models.get_model(
  'testing',
  num_classes=16,
  hidden_size=32,
  mlp_dim=256,
  num_heads=4,
  dropout_rate=0.2,
)
IMAGE_SIZE = (32, 32)


def make_run(mesh):
  """Returns (init function, update function) with AdamW."""
  config = base_config.get_config()
  config.update(dict(optimizer='adamw', weight_decay=0.1))

  def schedule(step):
    del step
    return 1e-3

  tx = optimizer.make_optimizer(config, schedule)
  return (
    classifier.make_init_fn(MODEL, tx, IMAGE_SIZE, mesh),
    classifier.make_update_fn(
      MODEL, tx, schedule, mesh, key=jax.random.key(1), accum_steps=2
    ),
  )


@functools.cache
def trained(num_devices, **lengths):
  """Returns (losses, state, mesh) after three updates."""
  mesh = sharding.make_mesh(jax.devices()[:num_devices], **lengths)
  init_fn, update = make_run(mesh)
  state = init_fn(jax.random.key(0))
  layout = jax.tree.map(lambda x: x.sharding, state)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.uniform(-1, 1, (16, *IMAGE_SIZE, 3)).astype(np.float32),
    'label': np.eye(16, dtype=np.float32),
  }
  losses = []
  for _ in range(3):
    before = state
    state, metrics = update(state, sharding.put_batch(batch, mesh))
    losses.append(float(metrics['train_loss']))
  assert jax.tree.map(lambda x: x.sharding, state) == layout
  assert all(x.is_deleted() for x in jax.tree.leaves(before))  # donated
  assert update.jitted._cache_size() == 1  # compiled once
  return losses, state, mesh


@pytest.mark.parametrize(
  'lengths',
  [
    pytest.param({}, id='data', marks=pytest.mark.slow),
    pytest.param({'data': 1, 'fsdp': -1}, id='fsdp', marks=pytest.mark.slow),
    pytest.param({'tensor': 4}, id='data_tensor', marks=pytest.mark.slow),
    pytest.param({'data': 2, 'fsdp': 2, 'tensor': 2}, id='all'),
  ],
)
def test_every_mesh_trains_like_one_device(lengths):
  """Uses dropout, micro-batches, and Adam's first moment in bfloat16.

  The mesh with three axes tests each axis. The data axis has a separate test,
  `test_train_step.test_one_device_equals_eight`.
  """
  losses, state, _ = trained(1)
  more_losses, more_state, _ = trained(8, **lengths)
  np.testing.assert_allclose(losses, more_losses, rtol=1e-6)
  assert losses[0] != losses[1]
  # For gradients near 0, rounding decides the sign of Adam's update.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    state.params,
    more_state.params,
  )


def test_parameters_and_their_moments_are_sharded():
  _, state, mesh = trained(8, data=2, fsdp=2, tensor=2)
  specs = jax.tree.map(lambda x: x.sharding.spec, state)
  moments = [
    optax.tree_utils.tree_get(specs.opt_state, name) for name in ('mu', 'nu')
  ]
  assert specs.params == moments[0] == moments[1]
  block = specs.params['Transformer']['encoderblock_0']
  assert block['MlpBlock_0']['Dense_0']['kernel'] == P('fsdp', 'tensor')
  assert block['MlpBlock_0']['Dense_1']['kernel'] == P('tensor', 'fsdp')
  assert block['MultiHeadDotProductAttention_0']['query']['kernel'] == P(
    None, 'tensor'
  )
  assert specs.step == P()
  kernel = state.params['Transformer']['encoderblock_0']['MlpBlock_0'][
    'Dense_0'
  ]['kernel']
  assert kernel.shape == (32, 256)
  assert {s.data.shape for s in kernel.addressable_shards} == {(16, 128)}


def test_saved_on_eight_devices_restored_on_one_and_back(tmp_path):
  _, state, mesh = trained(8, data=2, fsdp=2, tensor=2)
  for step, target in ((1, sharding.make_mesh(jax.devices()[:1])), (2, mesh)):
    checkpoints = checkpointing.Checkpoints(tmp_path, keep=2)
    checkpoints.save(step, state)
    checkpoints.close()
    restored = checkpointing.Checkpoints(tmp_path, keep=2).restore(
      step, make_run(target)[0]
    )
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert {x.sharding.mesh.size for x in jax.tree.leaves(restored)} == {
      target.size
    }
    state = restored
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, trained(8, data=2, fsdp=2, tensor=2)[1]
  )


def test_loaded_weights_are_sharded():
  _, state, _ = trained(8, data=2, fsdp=2, tensor=2)
  params = jax.tree.map(lambda x: np.full(x.shape, 3, x.dtype), state.params)
  loaded = train_state.with_params(
    state, params, classification.of_model(MODEL)
  ).params
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(
    lambda x: x.sharding, state.params
  )


MESH = sharding.make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
  'path, shape, spec',
  [
    (
      'Transformer/encoderblock_11/MultiHeadDotProductAttention_0/query/kernel',
      (768, 12, 64),
      P('fsdp', 'tensor'),
    ),
    ('MultiHeadDotProductAttention_0/key/bias', (12, 64), P('tensor')),
    (
      'MultiHeadDotProductAttention_0/out/kernel',
      (12, 64, 768),
      P('tensor', None, 'fsdp'),
    ),
    ('MultiHeadDotProductAttention_0/out/bias', (768,), P()),
    ('opt_state/0/mu/MlpBlock_0/Dense_0/bias', (3072,), P('tensor')),
    ('MlpBlock_10/gate/kernel', (768, 3072), P('fsdp', 'tensor')),
    (
      'encoderblock/MlpBlock_0/Dense_1/kernel',
      (12, 3072, 768),  # stacked
      P(None, 'tensor', 'fsdp'),
    ),
    (
      'MixerBlock_3/token_mixing/Dense_0/kernel',
      (196, 384),
      P('fsdp', 'tensor'),
    ),
    (
      'BertEncoder_0/encoder_block/layer_sequence/layers_2/mlp_block/mlp/'
      'dense_layer/kernel',
      (768, 3072),
      P('fsdp', 'tensor'),
    ),
    ('layers_2/mlp_block/dense_layer/kernel', (3072, 768), P('tensor', 'fsdp')),
    ('txt/Embed_0/embedding', (16_000, 384), P('fsdp', 'tensor')),
    ('head/kernel', (768, 1000), P('fsdp', 'tensor')),
    # An axis is not split if the mesh axis does not divide its length.
    ('MultiHeadDotProductAttention_0/query/kernel', (192, 3, 64), P('fsdp')),
    ('head/kernel', (768, 7), P()),
    ('block1/unit1/conv2/kernel', (3, 3, 65, 65), P()),
    # Small arrays are not split.
    ('encoder_norm/scale', (1280,), P()),
    ('step', (), P()),
  ],
)
def test_rules(path, shape, spec):
  assert sharding.partition_spec(path, shape, MESH) == spec


def test_every_tower_is_split():
  """The tensor axis splits more than 90 % of the parameters of large models."""
  mesh = sharding.make_mesh(tensor=4)
  for name, inputs in (
    ('ViT-B_16', {'images': np.zeros((1, 32, 32, 3))}),
    ('Mixer-B_16', {'images': np.zeros((1, 224, 224, 3))}),
    ('LiT-B16B', {'tokens': np.zeros((1, 16), int)}),
  ):
    classes = {} if name.startswith('LiT') else {'num_classes': 1000}
    model = models.get_model(name, **classes)
    init = functools.partial(model.init, train=False, **inputs)
    shapes = jax.eval_shape(init, jax.random.key(0))['params']
    sizes = jax.tree.leaves(jax.tree.map(lambda x: x.size, shapes))
    split = [
      size
      for size, s in zip(
        sizes, jax.tree.leaves(sharding.by_rules(shapes, mesh)), strict=True
      )
      if 'tensor' in s.spec
    ]
    assert sum(split) > 0.9 * sum(sizes), name


@pytest.mark.parametrize(
  'lengths, message',
  [
    ({'tensor': 3}, 'mesh.tensor=3 .* 3 does not divide 8'),
    ({'data': 2, 'fsdp': 2}, 'fsdp=2 .* 8 device.* product is 4. Set .*-1'),
    ({'data': 16}, 'mesh.data=16 .* 8 device'),
  ],
)
def test_invalid_meshes(lengths, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**lengths)


def test_the_axis_of_minus_1_gets_the_remaining_devices():
  for lengths, shape in (
    ({}, (8, 1, 1)),
    ({'tensor': 4}, (2, 1, 4)),
    ({'data': 1, 'fsdp': -1}, (1, 8, 1)),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
  ):
    assert tuple(sharding.make_mesh(**lengths).shape.values()) == shape


def test_an_axis_that_splits_nothing_is_rejected():
  params = {'MlpBlock_0': {'Dense_0': {'kernel': np.zeros((10, 12))}}}
  sharding.check_used(params, sharding.make_mesh(tensor=4))
  with pytest.raises(ValueError, match='tensor=8 .*MLP.*tensor=1'):
    sharding.check_used(params, sharding.make_mesh(tensor=8))
  with pytest.raises(ValueError, match='fsdp=2 .*8192 values.*fsdp=1'):
    sharding.check_used(params, sharding.make_mesh(fsdp=2))


def test_batches_are_checked_against_the_rows_of_the_mesh():
  sharding.check_batch('batch', 2, 1, sharding.make_mesh(tensor=4))
  with pytest.raises(
    ValueError,
    match='batch=12 .*mesh.data=2 × config.mesh.fsdp=4.* of 8.*batch=16',
  ):
    sharding.check_batch('batch', 12, 1, sharding.make_mesh(fsdp=4))


def test_each_device_gets_its_rows_of_the_process_batch(monkeypatch):
  """The process has the first and the last of four devices."""
  monkeypatch.setattr(
    sharding, 'share_of', lambda *_: sharding.Share((0, 3), 4)
  )
  monkeypatch.setattr(
    sharding,
    'by_rows',
    lambda _: types.SimpleNamespace(is_fully_addressable=False),
  )

  def parts_of_the_process(shape, _, of_device):
    assert shape == (8, 1)
    return [
      of_device((slice(first, first + 2), slice(None))).ravel().tolist()
      for first in (0, 6)
    ]

  monkeypatch.setattr(jax, 'make_array_from_callback', parts_of_the_process)
  batch = {'row': np.array([[0], [1], [6], [7]])}
  assert sharding.put_batch(batch, MESH) == {'row': [[0, 1], [6, 7]]}


def mesh_of_processes(process_of_device, data, tensor):
  """Returns a fake mesh with the attributes that `share_of` reads."""
  devices = np.array(
    [types.SimpleNamespace(process_index=p) for p in process_of_device], object
  )
  return types.SimpleNamespace(
    devices=devices.reshape(data, 1, tensor),
    shape={'data': data, 'fsdp': 1, 'tensor': tensor},
  )


def rows_of_all(mesh, num_processes, size):
  return [
    list(sharding.share_of(mesh, p).rows(size)) for p in range(num_processes)
  ]


def test_the_rows_of_each_process():
  mesh = mesh_of_processes([0, 0, 1, 1], 4, 1)
  assert rows_of_all(mesh, 2, 8) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  # The devices are not sorted by process.
  mesh = mesh_of_processes([0, 1, 1, 0], 4, 1)
  assert rows_of_all(mesh, 2, 4) == [[0, 3], [1, 2]]
  # Two processes hold shards of one layer, so both make the same rows.
  mesh = mesh_of_processes([0, 1, 2, 3], 2, 2)
  assert rows_of_all(mesh, 4, 4) == [[0, 1], [0, 1], [2, 3], [2, 3]]
  shares = [sharding.share_of(mesh, p) for p in range(4)]
  assert [(s.group, s.num_groups) for s in shares] == [
    (0, 2),
    (0, 2),
    (1, 2),
    (1, 2),
  ]
  # The rows of the processes overlap, so all processes are one group.
  mesh = mesh_of_processes([0, 0, 0, 1, 1, 1], 3, 2)
  assert rows_of_all(mesh, 2, 3) == [[0, 1], [1, 2]]
  assert sharding.share_of(mesh, 1).num_groups == 1
