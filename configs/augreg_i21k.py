"""Pre-trains a ViT on ImageNet-21k: `configs/augreg_i21k.py:MODEL,DATASET`.

  python -m vit_jax.main --config=configs/augreg_i21k.py:S_16,/path/to/i21k
  python -m vit_jax.main --config=configs/augreg_i21k.py:B_16,i21k/,medium1

MODEL is Ti_16, S_32, S_16, B_32, B_16, L_16 or another ViT of
vit_jax/models/variants.py. TFDS cannot prepare ImageNet-21k. DATASET is a
folder with a sub-folder for each class, or imagenet21k: a TFDS dataset of your
own with the split `full`, as the authors have it. Then the first 25 600 images
are the test images, the next 25 600 are held out, and the others are for
training. LEVEL, a third argument, is the strength of the augmentation, as in
configs/augreg_i1k.py. Without LEVEL, it is the one that big_vision uses.

This is the pre-training of AugReg (arXiv 2106.10270, section 3): 300 epochs of
21 843 classes, without dropout and stochastic depth, which did not help there.
For the authors' short schedule, use --config.total_epochs=30. Then fine-tune on
ImageNet at 384 px, as configs/vit.py does with these settings:

  --config=configs/vit.py:s16,imagenet2012 --config.pretrained=RUN

Top-1 accuracy of the authors' models after that: Ti_16 78.22, S_32 79.58, S_16
83.73, B_32 83.59, B_16 85.49, L_16 85.59 % (README of vision_transformer).
These are the best of 28 settings. Weight decay and level were 0.03 and none for
Ti_16, 0.03 and light1 for S_16, 0.1 and medium1 for B_16, 0.1 and strong1 for
L_16. This config has 0.1, as big_vision. We have not trained these models.

The differences from big_vision are those of configs/augreg_i1k.py.
"""

from vit_jax import base_config
from vit_jax.augment import augreg_levels
from vit_jax.models import variants

# Levels that big_vision uses for training on ImageNet-21k.
LEVELS = {
  'Ti_16': 'none',
  'S_32': 'none',
  'S_16': 'light1',
  'B_32': 'light2',
  'B_16': 'light2',
  'L_16': 'medium2',
}


def get_config(arg='S_16,imagenet21k'):
  model, _, rest = arg.partition(',')
  dataset, _, level = rest.partition(',')
  level = level or LEVELS.get(model)
  if not level:
    raise ValueError(
      f'augreg_i21k.py:{arg}: there is no usual level of augmentation for '
      f'{model}. Use augreg_i21k.py:{model},DATASET,LEVEL, where LEVEL is one '
      'of ' + ', '.join(augreg_levels.LEVELS)
    )
  config = base_config.for_dataset(dataset or 'imagenet21k')
  if config.dataset == 'imagenet21k':
    config.train_split = 'full[51200:]'
    config.validation = 'full[25600:51200]'
    config.test_split = 'full[:25600]'
  config.pretrained = 'scratch'
  config.model.name = variants.resolve(f'ViT-{model}')
  config.model.dropout_rate = 0.0

  config.pp.update(dict(crop=224, resize='crop', crop_fraction=224 / 256))
  config.pp.interpolation = 'bilinear_antialias'
  config.augment.update(augreg_levels.settings(level))
  config.loss = 'sigmoid'
  config.head_bias = -10.0

  config.batch = 4096
  config.total_steps = 0
  config.total_epochs = 300.0
  config.warmup_steps = 10_000
  config.optimizer = 'adamw'
  config.base_lr = 1e-3
  config.weight_decay = 0.1
  config.eval_every = 5000
  config.checkpoint_every = 5000
  return config
