"""Trains a ViT from scratch on ImageNet as DeiT III: `configs/deit3.py:MODEL`.

  python -m vit_jax.main --config=configs/deit3.py:s16

MODEL is s16, b16 or l16. This is the training for 800 epochs on ImageNet-1k of
DeiT III (arXiv 2204.07118, table 2 and appendix). b16 and l16 are trained at
192 px; the paper then fine-tunes them for 20 epochs at 224 px. Top-1 accuracy
of the paper at 224 px: s16 81.4, b16 83.8, l16 84.9 %. We have not trained
these models.

Differences from the authors' code (facebookresearch/deit):
- The class token also has a learned position, as in ViT.
- Pixels are scaled to [-1, 1], not by the mean and deviation of ImageNet.
- Kernels of blocks start from Xavier's uniform distribution, and the kernel of
  the head from 0. The authors use a normal distribution with deviation 0.02.
- The loss is the sum over the classes, not the mean. The updates of LAMB do not
  depend on this factor, but its epsilon has less weight.
- Augmentation differs from Pillow and torchvision in details, see
  docs/augmentation.md.
"""

from vit_jax import base_config

# (learning rate, image side, rate of stochastic depth)
MODELS = {
  's16': (4e-3, 224, 0.05),
  'b16': (3e-3, 192, 0.2),
  'l16': (3e-3, 192, 0.45),
}
_STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config(model='s16'):
  if model not in MODELS:
    raise ValueError(
      f'deit3.py:{model}: the argument must be one of {", ".join(MODELS)}.'
    )
  rate, size, drop_path_rate = MODELS[model]
  config = base_config.for_dataset('imagenet2012')
  config.train_split = 'train'
  config.pretrained = 'scratch'
  config.model.name = model
  config.model.update(
    dict(
      dropout_rate=0.0,
      drop_path_rate=drop_path_rate,
      drop_path_schedule='constant',
      layer_scale=1e-4,
      gelu='exact',
      norm_epsilon=1e-6,
    )
  )

  config.pp.update(dict(crop=size, min_area=0.08, resize='crop'))
  config.pp.interpolation = 'bicubic_antialias'
  config.pp.train_interpolation = 'bicubic_antialias'
  config.repeats = 3
  config.augment.update(
    dict(policy='3augment', jitter=0.3, mixup=0.8, cutmix=1.0)
  )
  config.loss = 'sigmoid'
  config.hard_targets = True

  config.batch = 2048
  config.total_steps = 0
  config.total_epochs = 800.0
  config.warmup_steps = 0
  config.warmup_epochs = 5.0
  config.warmup_start = 1e-6
  config.optimizer = 'lamb'
  config.base_lr = rate
  config.cosine_end = 1e-5
  config.weight_decay = 0.05
  # The paper's loss is the mean over classes, so its clipping never acts.
  config.grad_norm_clip = 0.0
  config.momentum_dtype = 'float32'
  config.eval_every = 10 * _STEPS_PER_EPOCH
  config.checkpoint_every = 10 * _STEPS_PER_EPOCH
  return config
