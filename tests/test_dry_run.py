
import jax
import jax.numpy as jnp
import pytest

from tests.test_processes import wide_config
from vit_jax import dry_run
from vit_jax import flops
from vit_jax import memory
from vit_jax import models
from vit_jax import plan
from vit_jax import sharding
from vit_jax import train


def test_what_a_dry_run_says(capsys):
  config = wide_config(**{'mesh.fsdp': 2, 'mesh.tensor': 4})
  config.accum_steps = 'auto'
  dry_run.show(config)
  said = capsys.readouterr().err
  for text in (
      'images 8 x 8, on 8 cpu device(s) (fsdp 2 × tensor 4)',
      'GFLOP an image forward', 'digits: 1420 training and 377 test images',
      '4 steps of 32 images: 0.1 epochs',
      'Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel '
      '[32 over fsdp × 256 over tensor]',
      'smaller arrays, whole', 'config.accum_steps=auto: 1',
      'in training, 16 image(s) at a time in each of 1 micro-batch(es): ',
      'in evaluation, 64 image(s) at a time: ', 'a device has '):
    assert text in said, (text, said)


def test_floating_point_operations_are_those_of_the_matrix_products():
  model = models.get_model('testing', num_classes=10, hidden_size=128,
                           mlp_dim=512, num_heads=4, num_layers=2)
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
  forward, training = flops.count(model, shapes['params'], (64, 64), 10)
  n, d, m = 17, 128, 512
  block = 2 * n * d * (4 * d + 2 * m) + 2 * 2 * n * n * d
  expected = 2 * block + 2 * 16 * (16 * 16 * 3) * d + 2 * d * 10
  assert expected < forward < 1.1 * expected
  assert 2.5 * forward < training < 3.2 * forward


class Needs:
  """Stands for the compiler, which says what n micro-batches need."""

  def __init__(self, monkeypatch, fixed, work, state=8):
    self.asked = []

    def needed(accum_steps, *_):
      self.asked.append(accum_steps)
      return memory.Needed(state, 0, fixed + work / accum_steps)

    monkeypatch.setattr(memory, 'needed', needed)


def state_and_batch(size=48):
  mesh = sharding.make_mesh(jax.devices()[:2])
  params = {'kernel': jax.ShapeDtypeStruct(
      (64, 64), jnp.float32, sharding=sharding.replicated(mesh))}
  return params, memory.abstract_batch(size, (8, 8), 10, mesh), mesh


def smallest(limit):
  params, batch, mesh = state_and_batch()
  return memory.fitting_accum_steps(
      lambda n: n, params, batch, mesh, limit / 0.95)


@pytest.mark.parametrize('limit, expected', [
    (2000, 1), (1011, 1), (1009, 2), (511, 2), (509, 3), (100, 12), (60, 24)])
def test_the_fewest_micro_batches_that_fit(monkeypatch, limit, expected):
  """24 rows on each device: 1, 2, 3, 4, 6, 8, 12, 24 divide them."""
  Needs(monkeypatch, fixed=2, work=1000)
  assert smallest(limit) == expected


def test_far_too_much_is_not_compiled_over_and_over(monkeypatch):
  needs = Needs(monkeypatch, fixed=2, work=1000)
  smallest(100)
  assert needs.asked == [1, 12]


def test_one_image_that_does_not_fit(monkeypatch):
  Needs(monkeypatch, fixed=200, work=1000)
  with pytest.raises(ValueError, match=(
      'one image at a time .*: --config.mesh.data=1 --config.mesh.fsdp=2 '
      'keeps 0.0 MB .* instead of 0.0 MB; .*bfloat16')):
    smallest(100)


def test_the_compiler_counts_less_for_more_micro_batches():
  config = wide_config(batch=64)
  planned = plan.make_plan(config)
  batch = memory.abstract_batch(64, (8, 8), 10, planned.mesh)
  parts = plan.make_parts(config, planned, _Data)
  one, four = (memory.needed(parts.make_update(n), parts.abstract_state, batch)
               for n in (1, 4))
  assert one.arguments == four.arguments > memory.per_device(
      parts.abstract_state)
  assert one.outputs < one.arguments / 10  # the state's memory is used again


class _Data:
  class_names = tuple('0123456789')


def test_running_out_of_memory_names_what_would_help(tmp_path):
  """A real failure of the allocator, in a hook."""
  def hook(step, *_):
    if step == 2:
      jnp.zeros((2**44,), jnp.float32).block_until_ready()

  config = wide_config(batch=64)
  with pytest.raises(MemoryError) as caught:
    train.train_and_evaluate(config, str(tmp_path), hooks=[hook])
  said = str(caught.value)
  for text in ('a device has run out of memory; it has ',
               '--config.accum_steps=4 works on 2 image(s) at a time on each '
               'device instead of 4',
               '--config.batch_eval=64, if it was in evaluation, 8 instead of',
               '--config.mesh.data=1 --config.mesh.fsdp=8 keeps 0.'):
    assert text in said, said
