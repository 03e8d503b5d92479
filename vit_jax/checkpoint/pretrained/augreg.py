"""AugReg's files: their models, their mirrors, and the choice of the best.

Steiner et al. 2021, "How to train your ViT?" (arXiv 2106.10270), published more
than 50 000 files. The name of a file contains its training settings:

  R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0
  …--imagenet2012-steps_20k-lr_0.03-res_384    (fine-tuned)

`index.csv`, in the folder of these files, lists them with their accuracies.
"""

import csv
import re

# {name in a file name: architecture in models/variants.py}
MODELS = {
  'Ti_16': 'ViT-Ti_16',
  'S_16': 'ViT-S_16',
  'S_32': 'ViT-S_32',
  'B_8': 'ViT-B_8',
  'B_16': 'ViT-B_16',
  'B_32': 'ViT-B_32',
  'L_16': 'ViT-L_16',
  'R_Ti_16': 'R+ViT-Ti_16',
  'R26_S_32': 'R26+ViT-S_32',
  'R50_L_32': 'R50+ViT-L_32',
}

# The prefixes of timm's names for these architectures.
_TIMM = {
  'Ti_16': 'vit_tiny_patch16',
  'S_16': 'vit_small_patch16',
  'S_32': 'vit_small_patch32',
  'B_8': 'vit_base_patch8',
  'B_16': 'vit_base_patch16',
  'B_32': 'vit_base_patch32',
  'L_16': 'vit_large_patch16',
  'R_Ti_16': 'vit_tiny_r_s16_p8',
  'R26_S_32': 'vit_small_r26_s32',
  'R50_L_32': 'vit_large_r50_s32',
}

# Files that timm mirrors on the Hugging Face Hub (timm 1.0.31). The columns are
# model, dataset, augmentation, weight decay, dropout, stochastic depth,
# resolutions and learning rate. The resolution 'i21k' means the file without
# fine-tuning. The last column is the learning rate of fine-tuning.
_ON_HUB = """
  Ti_16     i21k  none     0.03  0.0  0.0   i21k,224,384  0.03
  S_16      i21k  light1   0.03  0.0  0.0   i21k,224,384  0.03
  S_32      i21k  light1   0.03  0.0  0.0   i21k,224,384  0.03
  B_8       i21k  medium1  0.1   0.0  0.0   i21k,224      0.01
  B_16      i21k  medium1  0.1   0.0  0.0   i21k,224,384  0.01
  B_32      i21k  medium1  0.03  0.0  0.0   i21k,224      0.03
  B_32      i21k  light1   0.1   0.0  0.0   384           0.03
  L_16      i21k  medium1  0.1   0.1  0.1   i21k,224,384  0.01
  R_Ti_16   i21k  none     0.03  0.0  0.0   i21k,224,384  0.03
  R26_S_32  i21k  medium2  0.03  0.0  0.0   i21k,384      0.03
  R26_S_32  i21k  light0   0.03  0.1  0.1   224           0.03
  R50_L_32  i21k  medium2  0.1   0.0  0.0   i21k,384      0.01
  R50_L_32  i21k  medium1  0.1   0.1  0.1   224           0.01
  S_16      i1k   medium2  0.1   0.0  0.0   224,384       0.01
  B_16      i1k   strong2  0.1   0.1  0.1   224,384       0.01
  B_32      i1k   medium2  0.1   0.1  0.1   224,384       0.01
"""


def _hub_copies():
  """Returns {file name without .npz: repository} from the table above."""
  copies = {}
  for row in _ON_HUB.strip().splitlines():
    model, ds, aug, wd, do, sd, resolutions, lr = row.split()
    stem = f'{model}-{ds}-300ep-lr_0.001-aug_{aug}-wd_{wd}-do_{do}-sd_{sd}'
    for res in resolutions.split(','):
      if res == 'i21k':
        copies[stem] = f'timm/{_TIMM[model]}_224.augreg_in21k'
      else:
        tag = 'augreg_in1k' if ds == 'i1k' else 'augreg_in21k_ft_in1k'
        copies[f'{stem}--imagenet2012-steps_20k-lr_{lr}-res_{res}'] = (
          f'timm/{_TIMM[model]}_{res}.{tag}'
        )
  return copies


HUB_COPIES = _hub_copies()


def model_of(name: str) -> str | None:
  """Returns the architecture for an AugReg name or file name, or None."""
  return MODELS.get(name.partition('-')[0])


def on_hub(model: str) -> str:
  """Returns the name of the ImageNet-21k file of `model` that the Hub has."""
  return next(
    stem
    for stem in HUB_COPIES
    if re.fullmatch(rf'{model}-i21k-(?!.*--).*', stem)
  )


def choose(index: str, model: str) -> str:
  """Returns the name of the best ImageNet-21k file of `model`.

  The best file has the highest `final_val`. This is the accuracy on held-out
  training data at the end of pre-training.

  Args:
    index: path of `index.csv`.
    model: a key of `MODELS`.

  Raises:
    ValueError: the index is damaged, or does not list the model.
  """
  try:
    with open(index, encoding='utf-8', newline='') as file:
      rows = [
        (float(row['final_val']), row['filename'])
        for row in csv.DictReader(file)
        if row['name'] == model and row['ds'] == 'i21k'
      ]
  except (KeyError, TypeError, ValueError, csv.Error) as error:
    raise ValueError(
      f'{index} is not an index of AugReg ({error!r}). Delete it, and it will '
      'be downloaded again.'
    ) from error
  if not rows:
    raise ValueError(
      f'{index} lists no file of {model} with ds=i21k. Delete it, and it will '
      'be downloaded again.'
    )
  # A file has a row for each fine-tuning. `max` takes the first of these rows.
  return max(rows, key=lambda row: row[0])[1].removesuffix('.npz')
