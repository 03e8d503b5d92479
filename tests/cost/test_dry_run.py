import re
import types

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import psutil
import pytest

from tests import classifier
from tests.parallel.test_processes import wide_config
from vit_jax import base_config
from vit_jax import models
from vit_jax import train
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import hub
from vit_jax.checkpoint.pretrained import search
from vit_jax.cost import dry_run
from vit_jax.cost import flops
from vit_jax.cost import memory
from vit_jax.optim import rules
from vit_jax.parallel import host_memory
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import messages
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import task


def test_the_output_of_a_dry_run(capsys):
  config = wide_config(**{'mesh.fsdp': 2, 'mesh.tensor': 4})
  config.accum_steps = 'auto'
  dry_run.show(config)
  output = capsys.readouterr().err
  for text in (
    'images 8 x 8, on 8 cpu device(s) (fsdp 2 × tensor 4)',
    'GFLOP per image in the forward pass',
    'digits: 1420 training and 377 test images',
    '4 steps of 32 images: 0.1 epochs',
    'Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel '
    '[32 over fsdp × 256 over tensor]',
    'smaller arrays, replicated',
    'config.accum_steps=auto: 1',
    'in training, 16 image(s) at a time in each of 1 micro-batch(es): ',
    'in evaluation, 64 image(s) at a time: ',
    'memory of a device: ',
  ):
    assert text in output, (text, output)


def test_floating_point_operations_are_those_of_the_matrix_products():
  model = models.get_model(
    'testing',
    num_classes=10,
    hidden_size=128,
    mlp_dim=512,
    num_heads=4,
    num_layers=2,
  )
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
    )
  )
  arguments = (
    shapes['params'],
    classifier.batch_spec((64, 64), 8),
    setup.fresh_context(),
  )
  forward, training = flops.count(classification.of_model(model), *arguments)
  n, d, m = 17, 128, 512
  block = 2 * n * d * (4 * d + 2 * m) + 2 * 2 * n * n * d
  expected = 2 * block + 2 * 16 * (16 * 16 * 3) * d + 2 * d * 10
  assert expected < forward < 1.1 * expected
  assert 2.5 * forward < training < 3.2 * forward
  # scan, remat and the kind of attention do not change the count.
  config = base_config.get_config()
  config.model.update(dict(scan=True, remat='full', attention='fused'))
  plain = task.model_settings(setup.without_loops(config, model))
  other = model.clone(**{name: plain[name] for name in ('scan', 'remat')})
  assert plain['attention'] == 'plain'
  assert flops.count(classification.of_model(other), *arguments) == (
    forward,
    training,
  )


def test_a_line_describes_the_model():
  params = {'kernel': jax.ShapeDtypeStruct((1000, 2500), jnp.float32)}
  config = wide_config(**{'pp.crop_width': 12})
  assert messages.describe_model(
    config, params, sharding.make_mesh(jax.devices()[:2])
  ) == (
    'testing (dtype float32, hidden_size 32, mlp_dim 256, num_heads 4, '
    'patch_size 4), 2.5 M parameters, images 8 x 12, on 2 cpu device(s) '
    '(data 2)'
  )


def test_frozen_parameters_need_no_gradients_and_no_optimizer_state():
  config = wide_config(freeze='.*encoderblock.*', batch=16)
  mesh = setup.check(config)
  data = setup.load_data(config, mesh)
  full, frozen = (
    setup.make_parts(wide_config(freeze=freeze, batch=16), mesh, data)
    for freeze in ('', config.freeze)
  )
  states = [
    memory.per_device(parts.abstract_state.opt_state)
    for parts in (full, frozen)
  ]
  assert states[1] < states[0] / 2
  line = messages.describe_model(
    config, frozen.abstract_state.params, mesh, frozen.frozen_paths
  )
  trained = sum(
    x.size
    for path, x in jax.tree.leaves_with_path(frozen.abstract_state.params)
    if 'encoderblock' not in rules.path_of(path)
  )
  total = sum(x.size for x in jax.tree.leaves(frozen.abstract_state.params))
  assert f'parameters, {100 * trained / total:.3g} % of them trained' in line
  arguments = (
    frozen.task,
    frozen.abstract_state.params,
    frozen.abstract_batch(16),
    setup.fresh_context(),
  )
  forward, both = flops.count(*arguments)
  same_forward, less = flops.count(*arguments, frozen.frozen_paths)
  # The gradients of activations remain, because the embedding is trained.
  assert same_forward == forward
  assert 1.8 * forward < less < both - 0.6 * forward


class Needs:
  """A stub of the compiler's memory analysis for n micro-batches."""

  def __init__(self, monkeypatch, fixed, work, state=8):
    self.asked = []

    def needed(accum_steps, *_):
      self.asked.append(accum_steps)
      return memory.Needed(state, 0, fixed + work / accum_steps)

    monkeypatch.setattr(memory, 'needed', needed)


def state_and_batch(size=48):
  mesh = sharding.make_mesh(jax.devices()[:2])
  params = {
    'kernel': jax.ShapeDtypeStruct(
      (1000, 1000), jnp.float32, sharding=sharding.replicated(mesh)
    )
  }
  return (params, classifier.batch_spec((8, 8), size, mesh)), size, mesh


def smallest(limit):
  return memory.fitting_accum_steps(
    lambda n: n, *state_and_batch(), limit / 0.95
  )


@pytest.mark.parametrize(
  'limit, expected',
  [(2000, 1), (1011, 1), (1009, 2), (511, 2), (509, 3), (100, 12), (60, 24)],
)
def test_the_fewest_micro_batches_that_fit(monkeypatch, limit, expected):
  """The divisors of 24 rows per device are 1, 2, 3, 4, 6, 8, 12, 24."""
  Needs(monkeypatch, fixed=2, work=1000)
  assert smallest(limit) == expected
  # Another process has less memory.
  monkeypatch.setattr(processes, 'exchange', lambda found: [found, 48])
  assert smallest(limit) == 48


def test_few_compilations_if_much_memory_is_missing(monkeypatch):
  needs = Needs(monkeypatch, fixed=2, work=1000)
  smallest(100)
  assert needs.asked == [1, 12]


def test_one_image_that_does_not_fit(monkeypatch):
  Needs(monkeypatch, fixed=200, work=1000)
  with pytest.raises(
    ValueError,
    match=(
      'one image at a time .*: config.mesh.data=1 .*config.mesh.fsdp=2 '
      '.*2.0 MB .*instead of 4.0 MB; .*bfloat16'
    ),
  ):
    smallest(100)


def test_bytes_on_each_device():
  mesh = sharding.make_mesh(jax.devices()[:2])
  whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
  for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
    tree = {
      'whole': jax.ShapeDtypeStruct((10, 6), dtype, sharding=whole),
      'split': jax.ShapeDtypeStruct((10, 6), dtype, sharding=rows),
    }
    assert memory.per_device(tree) == size * (60 + 30)
    real = jax.tree.map(
      lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), tree
    )
    assert memory.per_device(real) == size * (60 + 30)


def test_cpu_devices_share_the_memory_of_the_machine(monkeypatch, tmp_path):
  machine = types.SimpleNamespace(total=4 * 10**9)
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: machine)
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(host_memory, '_CGROUP_LIMIT', str(limit))
  for text, total in (
    (None, 4 * 10**9),
    ('max', 4 * 10**9),
    (f'{3 * 10**9}', 3 * 10**9),
    (f'{5 * 10**9}', 4 * 10**9),
  ):  # the last limit is more than the memory of the machine
    if text:
      limit.write_text(f'{text}\n')
    assert memory.available() == total // jax.local_device_count()


def test_a_gpu_has_its_own_memory(monkeypatch):
  class Device:
    memory_stats = staticmethod(lambda: {'bytes_limit': 7 * 10**9})

  monkeypatch.setattr(jax, 'local_devices', lambda: [Device] * 2)
  assert memory.available() == 7 * 10**9


def test_the_compiler_counts_state_and_batch_once():
  config = wide_config(**{'batch': 64, 'mesh.data': 1, 'mesh.fsdp': -1})
  parts = setup.make_parts(
    config, setup.check(config), setup.get_datasets(config)
  )
  batch = parts.abstract_batch(64)
  one, four = (
    memory.needed(parts.make_update(n), parts.abstract_state, batch, None)
    for n in (1, 4)
  )
  assert (
    one.arguments
    == four.arguments
    == memory.per_device((parts.abstract_state, batch))
  )
  assert one.outputs < one.arguments / 10  # the state's memory is reused


def test_the_out_of_memory_error_contains_fixes(tmp_path):
  """The hook makes the allocator fail."""

  def hook(step, *_):
    if step == 2:
      jnp.zeros((2**44,), jnp.float32).block_until_ready()

  config = wide_config(batch=64)
  with pytest.raises(MemoryError) as caught:
    train.train_and_evaluate(config, str(tmp_path), hooks=[hook])
  message = str(caught.value)
  for text in (
    'out of memory; it has ',
    'config.accum_steps=4 processes 2 image(s) at a time on each '
    'device instead of 4',
    'config.batch_eval=64 evaluates 8 image(s) at a time on each device '
    'instead of',
    'config.mesh.data=1 with config.mesh.fsdp=8 stores 0.',
  ):
    assert text in message, message


@pytest.mark.parametrize('rho', [0.0, 0.05])
def test_the_advice_says_when_it_changes_the_training(rho):
  config = wide_config(**{'batch': 64, 'sam.rho': rho})
  with pytest.raises(MemoryError) as caught:
    with memory.explain_oom(config, 2, {}, sharding.make_mesh()):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 3 GB')
  warning = 'instead of 4, but changes the training, because config.sam.rho'
  assert (warning in str(caught.value)) == bool(rho), caught.value


# --- weights and images, without downloading and decoding --------------------


@pytest.fixture(name='nothing_fetched')
def fixture_nothing_fetched(monkeypatch, tmp_path):
  """Uses an empty cache; every download fails the test."""

  def fetch(url, *_, **__):
    raise AssertionError(url)

  for module in (download, hub):
    monkeypatch.setattr(module, 'fetch', fetch)
  for name in ('XDG_CACHE_HOME', 'HF_HUB_CACHE', 'VIT_JAX_CACHE'):
    monkeypatch.setenv(name, str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(  # compilation is tested above
    memory, 'needed', lambda *_: memory.Needed(8, 0, 8)
  )


def save_weights(path, config, num_classes=5):
  settings = task.model_settings(config)
  model = models.get_model(
    settings.pop('name'), num_classes=num_classes, **settings
  )
  weights_file.save(
    path,
    jax.device_get(
      model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)[
        'params'
      ]
    ),
  )


@pytest.mark.slow
def test_local_weights_are_checked(nothing_fetched, tmp_path, capsys):
  config = wide_config(pretrained='weights.npz')
  with pytest.raises(ValueError, match='no weights found for .weights.npz'):
    dry_run.show(config)
  save_weights('weights.npz', config)
  dry_run.show(config)
  assert f'weights: {tmp_path}/weights.npz, which match the model\n' in (
    capsys.readouterr().err
  )
  # Only the head is not in the file.
  config.freeze = 'head/.*|embedding/.*'
  dry_run.show(config)
  output = capsys.readouterr().err
  assert 'freezes 2 array(s) that are randomly initialized' in output
  assert 'would stay random, in head. ' in output
  assert 'frozen by config.freeze: 4 array(s), embedding, head\n' in output
  assert 'are frozen parameters, which have no optimizer state' in output
  config.freeze = ''
  config.pretrained_head = 'keep'
  with pytest.raises(ValueError, match='head'):  # the file has five classes
    dry_run.show(config)
  config = wide_config(pretrained='weights.npz', pretrained_head='fresh')
  config.model.mlp_dim = 128
  with pytest.raises(ValueError, match='MlpBlock_0/Dense_0/kernel'):
    dry_run.show(config)


def test_a_dry_run_downloads_no_weights(nothing_fetched, capsys):
  url = 'https://example.org/weights.npz'
  dry_run.show(wide_config(pretrained=url))
  output = capsys.readouterr().err
  assert re.search(f'weights: not downloaded .*:\n  {url}', output)


def test_places_of_published_weights_in_order(nothing_fetched, tmp_path):
  sources = ('https://mirror.example', str(tmp_path / 'disk'), 'hf://')

  def look(name):
    return search.look(name, model_name='ViT-Ti_16', sources=sources)

  assert look('scratch') == (None, [])
  path, places = look('Ti_16')
  index = places[0]
  assert path is None and index.startswith('https://mirror.example')
  assert '/index.csv, ' in index and index.endswith('best file of Ti_16')
  assert places[-1].startswith('hf://')  # used if there is no index
  file = 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz'
  path, places = look(file)
  assert path is None
  assert places[0] == f'https://mirror.example/vit_models/augreg/{file}'
  assert all(place.startswith('hf://') for place in places[1:])
  on_disk = tmp_path / 'disk/vit_models/augreg' / file
  on_disk.parent.mkdir(parents=True)
  on_disk.touch()
  assert look(file) == (str(on_disk), [])


def test_numbers_of_a_dry_run(nothing_fetched, monkeypatch, capsys):
  """Checks the numbers of images and epochs, the FLOPs and the bytes."""
  monkeypatch.setattr(
    memory,
    'needed',
    lambda function, state, batch, last: memory.Needed(
      batch['image'].shape[0] * 10**6,
      2 * 10**6,
      (5 if 'mask' in batch else 7) * 10**6,
    ),
  )
  monkeypatch.setattr(memory, 'available', lambda: 35 * 10**8)
  monkeypatch.setattr(flops, 'count', lambda *_: (1.234e9, 5.678e9))
  count = jax.device_count()
  dry_run.show(
    wide_config(batch=16 * count, batch_eval=24 * count, accum_steps=4)
  )
  output = capsys.readouterr().err
  for text in (
    '1.23 GFLOP per image in the forward pass, 5.68 in training (',
    f'4 steps of {16 * count} images: {64 * count / 1420:.1f} epochs\n',
    'in training, 4 image(s) at a time in each of 4 micro-batch(es): '
    f'{16 * count + 9}.0 MB = {16 * count}.0 MB state and batch + 9.0 MB ',
    f'in evaluation, 24 image(s) at a time: {24 * count + 7}.0 MB = '
    f'{24 * count}.0 MB state and batch + 7.0 MB work\n',
    'memory of a device: 3.50 GB\n',
  ):
    assert text in output, (text, output)


def test_images_of_a_folder_are_counted_without_decoding(
  nothing_fetched, tmp_path, capsys
):
  for name in ('a', 'b'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for i in range(3):
      Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
        tmp_path / 'photos' / name / f'{i}.png'
      )
  (tmp_path / 'photos/a/broken.png').write_text('no image')
  dry_run.show(wide_config(dataset=str(tmp_path / 'photos')))
  output = capsys.readouterr().err
  assert (
    '5 training and 2 test images in 2 classes, counted by file n' in output
  )
