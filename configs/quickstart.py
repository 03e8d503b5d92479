"""Trains a small ViT from scratch on scikit-learn's handwritten digits.

  python -m vit_jax.main --config=configs/quickstart.py

Expected test accuracy: 97.9 % after a minute of training (our measurement with
seed 0 on 2 CPU cores), and 97.3 to 98.7 % with seeds 1 to 4.
"""

from vit_jax import base_config


def get_config():
  config = base_config.for_dataset('digits')
  config.pretrained = 'scratch'

  config.model.update(
    dict(
      name='ViT-Ti_16',
      patch_size=4,
      hidden_size=64,
      mlp_dim=128,
      num_heads=4,
      num_layers=3,
      classifier='gap',
      dropout_rate=0.1,
    )
  )
  config.pp.update(dict(crop=16, min_area=0.7, flip=False))

  config.batch = 64
  config.accum_steps = 1
  config.total_steps = 1800
  config.warmup_steps = 50
  config.optimizer = 'adamw'
  config.base_lr = 2e-3
  config.weight_decay = 0.2
  config.momentum_dtype = 'float32'
  config.eval_every = 300
  config.checkpoint_every = 600
  return config
