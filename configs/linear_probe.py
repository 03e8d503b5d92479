"""A linear classifier on frozen features: `configs/linear_probe.py:MODEL,DATA`.

  python -m vit_jax.main --config=configs/linear_probe.py:ti16,/path/to/photos
  python -m vit_jax.main --config=configs/linear_probe.py:b16,cifar10
  python -m vit_jax.main --config=configs/linear_probe.py:my.safetensors,photos/

MODEL is a name in vit_jax/models/variants.py, or a short name: b16 for
ViT-B_16. Or it is a path or a URL of weights. DATA is a TFDS name or a
folder of images.

The published weights of the model are downloaded. For other weights, use
--config.pretrained with a path, a URL, a name or the folder of a run; see
docs/weights.md.

The features of all images are computed once, at 224 px and without random
changes. A tenth of the training images is held out, to choose the strength of
the L2 penalty. With ViT-Ti/16, 2,000 photographs take about two minutes on two
CPU cores (docs/benchmarks.md).
"""

from vit_jax import base_config


def get_config(arg='ti16,cifar10'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'cifar10')
  config.task = 'linear_probe'
  base_config.set_model(config, model)
  config.validation = 0.1
  config.freeze = '(?!head/).*'
  config.pp.update(dict(min_area=1.0, flip=False))
  if config.model.name != 'weights':
    config.pp.crop = 224
  config.batch_eval = 16  # for the features; more on an accelerator

  # A step for each strength, and one for the best of them.
  config.total_steps = len(config.l2_strengths) + 1
  config.warmup_steps = 0
  config.accum_steps = 1
  config.log_every = 0
  config.eval_every = 1
  config.checkpoint_every = 0
  return config
