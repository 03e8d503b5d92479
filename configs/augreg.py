"""Fine-tunes a checkpoint of AugReg: `configs/augreg.py:MODEL[,DATASET]`.

  python -m vit_jax.main --config=configs/augreg.py:R_Ti_16
  python -m vit_jax.main --config=configs/augreg.py:S_16,/path/to/photos

MODEL is Ti_16, S_16, S_32, B_8, B_16, B_32, L_16, R_Ti_16, R26_S_32 or
R50_L_32. It selects the ImageNet-21k checkpoint with the highest final_val in
AugReg's index.csv. MODEL may also be the name of a file, pre-trained or
fine-tuned:
  B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0
The run searches for this file when it starts.

The run has 500 steps at 384 px, as in the original code for AugReg (arXiv
2106.10270). The original config also contains a resize to 448 px, but the
original code does not read it: the random crop is resized to 384 px directly.
"""

from vit_jax import base_config
from vit_jax.checkpoint.pretrained import augreg


def get_config(arg='R_Ti_16'):
  weights, _, dataset = arg.partition(',')
  weights = weights.removeprefix('augreg/')
  model = augreg.model_of(weights)
  if model is None:
    raise ValueError(
      f'augreg.py:{arg}: {weights!r} is neither a model of AugReg ('
      + ', '.join(augreg.MODELS)
      + ') nor the name of a file of AugReg.'
    )
  config = base_config.for_dataset(dataset or 'oxford_iiit_pet')
  config.model.name = model
  config.model.dropout_rate = 0.0
  config.pretrained = weights
  config.total_steps = 500
  config.warmup_steps = 100
  config.checkpoint_every = 100
  return config
