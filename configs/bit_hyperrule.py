"""Fine-tunes a model as BiT: `configs/bit_hyperrule.py:MODEL,DATASET`.

  python -m vit_jax.main --config=configs/bit_hyperrule.py:BiT-R50x1,cifar10
  python -m vit_jax.main --config=configs/bit_hyperrule.py:b16,/path/to/photos

The number of training images and their size decide about steps, warm-up, drops
of the learning rate, mixup and image sizes: BiT-HyperRule (arXiv 1912.11370,
section 3.3). The run logs these settings. For other values, set
--config.hyperrule=False and all of them. The published TensorFlow and JAX code
of BiT flips all training images. Here, half of them are flipped.

Test accuracy in the paper (table 1) for BiT-M-R152x4 with ImageNet-21k weights:
cifar10 98.91 %, cifar100 92.17 %. We have not measured this.
"""

from vit_jax import base_config


def get_config(arg='BiT-R50x1,cifar10'):
  model, _, dataset = arg.partition(',')
  config = base_config.for_dataset(dataset or 'cifar10')
  base_config.set_model(config, model)
  config.hyperrule = True
  config.total_steps = config.warmup_steps = 0
  config.pp.crop = 0
  config.pp.update(dict(min_area=1.0, train_crop='squash'))
  config.optimizer = 'sgd'
  config.base_lr = 0.003
  config.decay_type = 'step'
  config.momentum_dtype = 'float32'
  config.grad_norm_clip = 0.0
  return config
