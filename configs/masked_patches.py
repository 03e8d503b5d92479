"""Pre-trains without labels: masked patch prediction, as in the ViT paper.

  python -m vit_jax.main --config=configs/masked_patches.py:b16,/path/to/photos

MODEL is a name in vit_jax/models/variants.py, or a short name. DATASET is a
folder of images (at any depth; classes are not needed) or a TFDS name. Then
fine-tune the run on labelled images:

  python -m vit_jax.main --config=configs/vit.py:b16,own --config.pretrained=RUN

The settings are those of arXiv 2010.11929, appendix B.1.2, except for the
length: the paper trains a million steps of 4096 images of JFT, and says that
little is gained after 100 000 steps. The paper reports no loss.
"""

from vit_jax import base_config


def get_config(arg='b16,imagenet2012'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'imagenet2012')
  base_config.set_model(config, model)
  config.task = 'masked_patches'
  config.labels = 'none'
  config.pretrained = 'scratch'
  config.model.dropout_rate = 0.0

  config.pp.crop = 224
  config.batch = 4096
  config.accum_steps = 1
  config.total_steps = 100_000
  config.warmup_steps = 10_000
  config.eval_every = 5000
  config.optimizer = 'adamw'
  config.base_lr = 2e-4
  config.weight_decay = 0.1
  config.momentum_dtype = 'float32'
  return config
