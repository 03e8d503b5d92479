"""All settings of a run, with their defaults, and presets for datasets.

An experiment file starts from `get_config()` and changes settings. The command
line can change each setting, too: `--config.pp.crop=224`. Relative paths start
at the current folder.
"""

import difflib
import math
import os
import re
from typing import Any

import ml_collections
from ml_collections import config_dict
from ml_collections import ConfigDict

from vit_jax.checkpoint.pretrained import registry
from vit_jax.data.data_settings import Cropping
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.data_settings import Resizing
from vit_jax.data.image_files import decoding
from vit_jax.evaluators import options

# Fine-tuning settings of the ViT paper's code for each dataset.
DATASETS = {
  'cifar10': dict(train_split='train[:98%]', total_steps=10_000),
  'cifar100': dict(train_split='train[:98%]', total_steps=10_000),
  'imagenet2012': dict(
    train_split='train[:99%]', test_split='validation', total_steps=20_000
  ),
}
# Other datasets: the short schedule of AugReg (arXiv 2106.10270, appendix).
OTHER_DATASET = dict(total_steps=500, warmup_steps=100, checkpoint_every=100)


# {setting, or group of settings: the task that reads it}
_OF_TASKS = {
  'dino': 'dino',
  'l2_strengths': 'linear_probe',
  'mae': 'mae',
  'masked_patches': 'masked_patches',
}
# Names of splits, and the suffix of a second set of parameters.
_RESERVED = ('train', 'validation', 'test', 'raw')


def get_config() -> ConfigDict:
  """Returns all settings: fine-tuning as in the ViT paper, section 4.1.

  The comments are printed by --help. '# ---' starts a group. The comment of a
  setting is above it or after it.
  """
  config = ml_collections.ConfigDict()
  optional = config_dict.placeholder  # None, or a value of this type

  # --- task and seed
  # What is learned: classification, multi_label (0 or 1 for each class),
  # regression (numbers), mae, masked_patches and dino (no labels), or another
  # file in vit_jax/tasks/.
  config.task = 'classification'
  # Only evaluate: the run in the workdir, or the weights file or run folder in
  # `pretrained`.
  config.eval_only = False
  # Seed of parameters, data order, augmentation and dropout, below 2**32.
  config.seed = 0
  # Strengths of the L2 penalty of the head. The validation split selects one.
  # The penalty is l2 / 2 times the sum of the squared weights, and
  # is added to the mean loss (config.task=linear_probe only).
  config.l2_strengths = (
    *(10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4),
    *(3e-5, 1e-5),
  )

  # Weights of the classes in the training loss (config.task=classification
  # only): balanced (inversely proportional to the number of training images of
  # a class), or a tuple with a number for each class. '': none.
  config.class_weights = config_dict.FieldReference('', field_type=object)
  # Loss of config.task=classification: softmax, or sigmoid (the sum of the
  # losses of all classes, as in big_vision). Other tasks have their own loss.
  config.loss = 'softmax'
  # Fraction of each training label that is spread evenly over all classes,
  # below 1 (config.task=classification only).
  config.label_smoothing = 0.0
  # With config.loss=sigmoid: each class of a mixed image has the label 1, as in
  # DeiT III.
  config.hard_targets = False
  # Initial bias of all classes in a new head, such as -6.9 = -ln(1000) for
  # config.loss=sigmoid with 1000 classes, or config.task=multi_label.
  config.head_bias = 0.0

  # --- learning without labels (config.task=masked_patches, mae, dino only)
  config.masked_patches = masked_patches = ml_collections.ConfigDict()
  masked_patches.ratio = 0.5  # Fraction of the patches that are corrupted.
  # What is predicted: color (class of the mean color), color_4x4 (of 16 cells
  # of a patch), or all pixels with a squared (l2) or absolute error (l1).
  masked_patches.target = 'color'

  config.mae = mae = ml_collections.ConfigDict()
  mae.mask_ratio = 0.75  # Fraction of the patches that the encoder cannot see.
  # Whether the target of a patch has mean 0 and deviation 1.
  mae.normalize = True
  mae.decoder_size = 512  # Width of a token in the decoder.
  mae.decoder_layers = 8  # Number of blocks of the decoder.
  mae.decoder_heads = 16  # Attention heads of the decoder.
  # Positions of the decoder: sincos2d, or learned, as in published weights.
  mae.decoder_positions = 'sincos2d'

  config.dino = dino = ml_collections.ConfigDict()
  dino.prototypes = 65_536  # Number of outputs of the projection head.
  # Views of each image in addition to the two global ones, which are training
  # crops of the size pp.crop.
  dino.local_views = 8
  dino.local_size = 96  # Height and width of a local view, in pixels.
  dino.local_min_area = 0.05  # Smallest area of a local view, as a fraction.
  dino.local_max_area = 0.4  # Largest area of a local view, as a fraction.
  # Whether the colors of views change (brightness, hue, grey, solarization).
  dino.colors = True
  dino.blur = True  # Whether changes of colors include blur.
  dino.teacher_temperature = 0.04  # Temperature of the teacher's softmax.
  # Temperature at the first step; it changes linearly to teacher_temperature.
  dino.first_teacher_temperature = 0.04
  dino.temperature_steps = 0  # Steps of this change.
  # First momentum of the teacher. It rises to 1 on a cosine.
  dino.momentum = 0.996
  dino.frozen_epochs = 0.0  # Epochs in which the prototypes are not trained.

  # --- targets (config.task=regression only)
  config.targets = targets = ml_collections.ConfigDict()
  # Name of each target, of letters, digits and underscores. (): target_0, ….
  targets.names = ()
  targets.units = ()  # Unit of each target, such as kg. (): without units.
  # Mean of each target, which is subtracted. (): of the training labels.
  targets.mean = ()
  # Standard deviation, which divides each target. (): of the training labels.
  targets.std = ()

  # --- model (None: the value of the architecture)
  config.model = model = ml_collections.ConfigDict()
  # Architecture: a name in vit_jax/models/variants.py, a short one: b16, or
  # weights: the architecture of the weights in `pretrained`.
  model.name = 'ViT-B_16'
  model.patch_size = optional(int)  # Side of a patch, in pixels.
  model.hidden_size = optional(int)  # Width of a token.
  model.mlp_dim = optional(int)  # Hidden width of an MLP.
  model.tokens_mlp_dim = optional(int)  # Hidden width of a Mixer's token MLP.
  # Attention heads per layer. They divide hidden_size unless head_dim is set.
  model.num_heads = optional(int)
  # Width of an attention head. None: hidden_size / num_heads.
  model.head_dim = optional(int)
  model.num_layers = optional(int)  # Number of encoder blocks.
  # Pooling: token (class token), gap (mean of patches), map (attention), probe
  # (attention without an MLP) or token_gap (class token and mean).
  model.classifier = optional(str)
  # Whether there is a class token. None: only if the pooling reads it.
  model.class_token = optional(bool)
  # Whether a distillation token follows the class token (DeiT).
  model.distilled = optional(bool)
  model.num_registers = optional(int)  # Number of register tokens.
  model.pool_heads = optional(int)  # Heads of map. None: num_heads.
  # Hidden width of the MLP of map. None: mlp_dim.
  model.pool_mlp_dim = optional(int)
  # Whether gap, map and probe also read class token and registers.
  model.pool_all_tokens = optional(bool)
  model.pixel_norm = optional(bool)  # A norm of the pixels of each patch.
  model.patch_bias = optional(bool)  # Whether patch embeddings have a bias.
  model.patch_norm = optional(bool)  # A norm after the patch embedding.
  # Deviation of the initial class token and positions. None: 0 and 0.02.
  model.embedding_std = optional(float)
  # Drop the pixels after the last whole patch.
  model.drop_remainder = optional(bool)
  # Position embeddings: learned, learned_2d, sincos2d, relative,
  # relative_table, relative_mlp or none.
  model.positions = optional(str)
  # Where positions are added: input, every_layer or every_layer_shared.
  model.positions_at = optional(str)
  model.relative_mlp_dim = optional(int)  # Hidden width of relative_mlp.
  # Rotary positions: axial, normalized or mixed. None: no rotary positions.
  model.rotary = optional(str)
  model.rotary_temperature = optional(float)  # Base of the frequencies.
  # Grid (rows, columns) that the coordinates are stretched to. None: no change.
  model.rotary_grid = optional(tuple)
  # Order of the coordinates: ij (row, column) or xy (column, row).
  model.rotary_indexing = optional(str)
  model.rotary_offset = optional(float)  # Added to coordinates, in patches.
  # Whether channels i and i + width / 2 of a head are rotated together.
  # Otherwise, neighboring channels are.
  model.rotary_halves = optional(bool)
  # Width of a dense layer with tanh before the head. None: no such layer.
  model.representation_size = optional(int)
  # Whether attention and MLP are sequential or parallel.
  model.block = optional(str)
  # Number of attention layers, and of MLPs, side by side in each block.
  model.num_parallel = optional(int)
  model.qkv_bias = optional(bool)  # Bias of queries, keys and values.
  model.key_bias = optional(bool)  # With qkv_bias: also a bias of keys.
  model.attention_out = optional(bool)  # The last layer of attention.
  model.out_bias = optional(bool)  # Its bias.
  model.qk_norm = optional(bool)  # Normalize queries and keys.
  model.qk_norm_bias = optional(bool)  # Whether these norms have a bias.
  model.attention_norm = optional(bool)  # Normalize the outputs of the heads.
  model.layer_scale = optional(float)  # Initial LayerScale, such as 1e-4.
  model.gelu = optional(str)  # exact, or an approximation: tanh or quick.
  model.gated_mlp = optional(bool)  # SwiGLU in MLPs.
  model.mlp_bias = optional(bool)  # Biases of MLPs.
  model.mlp_norm = optional(bool)  # Normalize the hidden layer of MLPs.
  model.norm = optional(str)  # Kind of norms: layer or rms.
  # Put norms after attention and MLPs instead of before them.
  model.norm_after = optional(bool)
  model.norm_epsilon = optional(float)  # Added to the variance in norms.
  model.pre_norm = optional(bool)  # A norm before the blocks.
  model.encoder_norm = optional(bool)  # The norm after the blocks.
  model.head_norm = optional(bool)  # A norm between pooling and head.
  # Hybrids only: bottleneck units in each stage of the stem.
  model.stem_units = optional(tuple)
  model.stem_width = optional(int)  # Hybrids only: channels after the root.
  # Hybrids only: epsilons of the stem, original or timm.
  model.stem_epsilons = optional(str)
  # Mean of each channel of the images, for pixels in 0…1. None: 0.5.
  model.image_mean = optional(tuple)
  model.image_std = optional(tuple)  # Deviation of each channel. None: 0.5.
  # Dropout rate after attention, in MLPs and on embeddings, below 1.
  model.dropout_rate = optional(float)
  # Dropout rate of attention weights, below 1.
  model.attention_dropout_rate = optional(float)
  # Dropout rate of embeddings, below 1. None: dropout_rate.
  model.embedding_dropout_rate = optional(float)
  # Fraction of patches that training drops from each image.
  model.patch_dropout_rate = optional(float)
  # Stochastic depth: drop rate of the last block.
  model.drop_path_rate = optional(float)
  # Drop rates of the other blocks: linear (they rise from 0 in the first block)
  # or constant.
  model.drop_path_schedule = optional(str)
  # Number of columns, if the encoder is a FractalNet of blocks.
  model.fractal_columns = optional(int)
  # Fraction of training passes that use a single column of a FractalNet.
  model.global_drop_path_rate = optional(float)
  # Attention code: plain, fused (cuDNN on GPU) or auto (fused if possible).
  model.attention = optional(str)
  # Remat, and what it stores for the backward pass: none (all activations),
  # dots (matrix products), dense (dense layers) or full (layer inputs only).
  model.remat = optional(str)
  model.scan = optional(bool)  # Loop over one compiled layer: compiles faster.
  # Type of activations: float32, or bfloat16, which is slow on CPUs.
  model.dtype = 'float32'

  # --- initial weights
  # model (published weights of model.name), scratch (random), a path, a URL
  # (https://, gs://, hf://), or a published name such as sam/ViT-B_16.
  config.pretrained = 'model'
  # Head: fresh (new) or keep (head of the weights, for the same classes).
  config.pretrained_head = 'fresh'
  config.pretrained_dir = '.'  # Folder of downloaded weights, searched first.
  # Where published weights are searched, in order: URL prefixes or folders, to
  # which BUCKET/FOLDER/FILE is appended, or hf:// for the Hugging Face Hub.
  config.weights_sources = registry.SOURCES

  # --- data
  # digits (scikit-learn), a folder of images, an .npz file with the arrays
  # image, label, test_image and test_label, or the name of a TFDS dataset.
  config.dataset = 'cifar10'
  # Training split: a TFDS split, or a sub-folder. Of a folder, 'train' also
  # means training, Train, …; './train' means this folder, and '.' means that
  # all sub-folders are classes.
  config.train_split = 'train'
  config.test_split = 'test'  # Test split: a TFDS split, or a sub-folder.
  # Training images held out to choose settings: a fraction below 1, a number of
  # images, or the name of a split or sub-folder. '': the validation split of a
  # folder, if it has three parts. 0: none. Held-out images determine the best
  # checkpoint and early stopping. The test split is then read only at the end.
  config.validation = config_dict.FieldReference('', field_type=object)
  # Labels of a folder of images: a table (.csv, .tsv, .jsonl, .parquet) or a
  # list of files (.txt). '': a table in the folder, or else the names of the
  # sub-folders. folders: always the names of the sub-folders. none: the images
  # have no labels, and a folder may have any structure (also other datasets).
  config.labels = ''
  # Column of the table with the labels, or columns: 'cat,dog'. '': by its name.
  config.label_column = ''
  # Column of the table with the files. '': by its name.
  config.file_column = ''
  # Character between the classes of one image in a table. '': ; | or a comma.
  # none: a cell is one class.
  config.label_separator = ''
  # Images of one group stay on one side of held-out images: a column of the
  # table, or a regular expression on the relative path with one group in
  # brackets, such as '(patient\\d+)_'. '': no groups.
  config.group_by = ''
  config.tfds_data_dir = ''  # TFDS folder. '': ~/tensorflow_datasets.
  # Where batches are made: host (tf.data), or device: all images are put on
  # each device once, and the training step crops and flips them.
  config.data_on = 'host'
  # Largest set to put on each device, in bytes of its pixels (data_on=device).
  config.device_data_bytes = 2 * 2**30
  # Largest TFDS split to keep in memory, in bytes. Larger splits are streamed.
  config.in_memory_bytes = 4 * 2**30
  # Size of the shuffle buffer of streamed splits, in examples.
  config.shuffle_buffer = 50_000
  config.max_bad_images = 0.05  # Fraction of images that may be undecodable.
  # Order of the training images: uniform (each epoch has each image once), or
  # balanced (each epoch has equally many images of each class).
  config.sampling = 'uniform'
  # How often each example follows itself, with other random changes, such as 3
  # (DeiT). An epoch has as many images as without.
  config.repeats = 1
  config.batch = 512  # Training examples per step, over all devices.
  config.batch_eval = 512  # Evaluation examples per step, over all devices.

  # --- image preprocessing
  config.pp = pp = ml_collections.ConfigDict()
  # Height of the model's images, in pixels. 0: as for the weights.
  pp.crop = 384
  pp.crop_width = 0  # Width of the images, in pixels. 0: square images.
  # In evaluation: squash resizes the whole image, crop keeps its aspect ratio.
  pp.resize = 'squash'
  # Then the center is cropped: its side as a fraction of the resized image.
  pp.crop_fraction = 1.0
  # Resizing in evaluation: bilinear (as in the original code), or as Pillow:
  # bilinear_antialias, bicubic_antialias or lanczos_antialias.
  pp.interpolation = 'bilinear'
  pp.min_area = 0.05  # Smallest area of a random crop, a fraction. 1: no crop.
  pp.flip = True  # Flip half of the training images horizontally.
  # Random crops: area (of random size and shape, then resized), or a window of
  # the model's size, after resizing to train_size as squash or crop.
  pp.train_crop = 'area'
  # Height of training images before a window is cropped, in pixels. With
  # train_crop=crop, the smaller side counts.
  pp.train_size = 0
  # Resizing in training: as in interpolation.
  pp.train_interpolation = 'bilinear'
  # Where training images are resized and flipped, after cropping: host, or
  # device: in the training step. The host then makes more images per second.
  pp.train_resize_on = 'host'
  # Turn images upright, as their EXIF tag says: apply, ignore, or auto, which
  # applies the tag of own files, and ignores it in TFDS datasets.
  pp.exif = 'auto'
  # Color under transparent pixels: white, black, '#rrggbb', ignore (hidden
  # colors appear), or auto: white in own files, ignore in TFDS datasets.
  pp.background = 'auto'

  # --- augmentation on the device, after crop and flip, in this order
  config.augment = augment = ml_collections.ConfigDict()
  # Pixels that are padded at each side by reflection, before a random crop of
  # the same size. 0: off.
  augment.pad = 0
  # Operations on each image: randaug(L,M), randaug_fixed(L,M), timm's
  # rand-m9-mstd0.5-inc1, trivial or 3augment. '': none.
  augment.policy = ''
  # Brightness, contrast and saturation change by a factor of 1 ± this number,
  # such as 0.3. 0: off.
  augment.jitter = 0.0
  augment.erasing = 0.0  # Fraction of the images with a random box of noise.
  # Parameter α of mixup, which mixes two images with λ ~ Beta(α, α). 0: off.
  augment.mixup = 0.0
  augment.cutmix = 0.0  # Parameter α of CutMix. 0: off.
  # Who is mixed: timm (row i with row batch - 1 - i) or big_vision (row i with
  # row i - 1, and λ is at least 0.5).
  augment.mix_rules = 'timm'
  augment.mix_prob = 1.0  # Probability that images are mixed.
  augment.switch_prob = 0.5  # Probability of CutMix, if there is also mixup.
  # λ and the choice are drawn for each batch, elem (row) or pair of rows.
  augment.mix_mode = 'batch'
  augment.mix_off = 0.0  # Fraction of the run without mixing, at its end.

  # --- schedule (in steps; one step is one update of the parameters)
  config.total_steps = 0  # Steps of the run. Or set total_epochs.
  config.total_epochs = 0.0  # Epochs of the run, instead of total_steps.
  # BiT-HyperRule: the training images determine total_steps, warmup_steps,
  # drop_steps, augment.mixup, pp.crop and pp.train_size. Each of these must be
  # 0 or (), or have the rule's value.
  config.hyperrule = False
  # Micro-batches per batch: more need less memory. auto: as few as fit.
  config.accum_steps = config_dict.FieldReference(8, field_type=object)
  config.base_lr = 0.03  # Learning rate after warm-up.
  config.warmup_steps = 500  # Steps of linear warm-up, below total_steps.
  # Epochs of linear warm-up, instead of warmup_steps=0. 0: use warmup_steps.
  config.warmup_epochs = 0.0
  config.warmup_start = 0.0  # Learning rate of the first step of the warm-up.
  # Decay after warm-up: cosine (to cosine_end), linear (to linear_end),
  # constant, rsqrt, or step (drops at drop_steps).
  config.decay_type = 'cosine'
  config.cosine_end = 0.0  # Final learning rate of cosine decay.
  config.linear_end = 1e-5  # Final learning rate of linear decay.
  # Steps after which the learning rate of step decay drops, counted from the
  # start of the run, such as (3000, 6000, 9000).
  config.drop_steps = ()
  config.drop_factor = 0.1  # Factor of the learning rate at a drop, below 1.
  config.rsqrt_timescale = 10_000  # Timescale of rsqrt decay, in steps.
  # Steps of a linear decay to 0 at the end, for constant and rsqrt. 0: none.
  config.cooldown_steps = 0

  # --- optimizer
  # sgd, adam, adamw, lion, lamb, lars, adafactor or muon.
  config.optimizer = 'sgd'
  # Momentum of sgd, lars and adafactor, at least 0 and below 1.
  config.momentum = 0.9
  # Decay of the first moment of adam, adamw, lamb and muon's other parameters.
  config.adam_b1 = 0.9
  # Decay of their second moment, at least 0 and below 1.
  config.adam_b2 = 0.999
  config.lion_b1 = 0.9  # Decay of lion's momentum in its updates, below 1.
  config.lion_b2 = 0.99  # Decay of lion's stored momentum, below 1.
  config.adafactor_b2_cap = 0.999  # Largest decay of adafactor's second moment.
  config.muon_momentum = 0.95  # Nesterov momentum of muon, below 1.
  # Root mean square of muon's updates: 0.2 uses the learning rates of adamw. 0:
  # the factor sqrt(max(1, outputs / inputs)) of the original code.
  config.muon_rms = 0.2
  # Type of momentum and first moment: float32, or bfloat16. bfloat16 needs a
  # decay of 0.9 or less (momentum, adam_b1, lion_b2 or muon_momentum).
  config.momentum_dtype = 'bfloat16'
  # Weight decay of kernels (not for sgd and adam).
  config.weight_decay = 0.0
  # What multiplies the weight decay: lr (the learning rate, as in papers, torch
  # and optax) or schedule (learning rate / base_lr, as in big_vision; not for
  # lamb and lars).
  config.weight_decay_scale = 'lr'
  # Weight decay at the end of the run, reached along a cosine. None: constant.
  config.weight_decay_end = optional(float)
  # Factors of the weight decay, such as 'head/kernel:0,cls:1', in the form of
  # lr_rules. '': 1 for kernels and 0 for all others, also without a rule.
  config.decay_rules = config_dict.FieldReference('', field_type=object)
  # Largest global gradient norm of the trained parameters. 0: no clipping.
  config.grad_norm_clip = 1.0
  # Largest gradient norm of each array, clipped before the global norm. 0: no
  # clipping.
  config.array_norm_clip = 0.0
  # Decay of a moving average of the parameters (EMA), below 1, such as 0.9999.
  # The average is then the result of the run: metrics such as accuracy_test,
  # the best checkpoint, prediction and export use it. 0: no average.
  config.ema_decay = 0.0
  # Power p of a warm-up of this decay: at most 1 - (1 + step)^-p, such as 0.75.
  # 0: no warm-up.
  config.ema_warmup_power = 0.0
  # Maximum number of non-finite updates to skip in a row. 0: stop at the first.
  config.skip_nonfinite = 0
  # Parameters that are not trained: a regular expression that matches their
  # whole paths, such as '.*embedding.*|.*encoderblock_[0-5]/.*'. '': none.
  config.freeze = ''
  # Factors of the learning rate: 'EXPRESSION:FACTOR,…', such as
  # 'head/.*:10,.*encoderblock_0/.*:0.1', or a tuple of (expression, factor).
  # An expression matches whole paths, and the first match counts. '': none.
  config.lr_rules = config_dict.FieldReference('', field_type=object)
  # Factor of the learning rate from each layer to the layer below it, such as
  # 0.75. It is multiplied with lr_rules. 1: none.
  config.layer_decay = 1.0

  # --- sharpness-aware minimization (SAM, GSAM)
  config.sam = sam = ml_collections.ConfigDict()
  # Radius of the perturbation of the parameters, such as 0.05. 0: no SAM.
  sam.rho = 0.0
  # GSAM: radius at the lowest learning rate of the schedule. None: rho.
  sam.rho_min = optional(float)
  sam.alpha = 0.0  # GSAM: weight of the surrogate gap. 0: SAM.
  # Perturbation in proportion to the parameters: none, asam (the paper) or
  # big_vision.
  sam.adaptive = 'none'
  # Gradient that GSAM changes: perturbed (the paper), or clean.
  sam.base = 'perturbed'

  # --- devices (mesh axes: their product is the number of devices)
  config.mesh = mesh = ml_collections.ConfigDict()
  # Copies of the parameters; each copy gets a part of the batch. One axis may
  # be -1: all remaining devices. Losses do not depend on the mesh, and a run
  # may be resumed on another mesh.
  mesh.data = -1
  # Parts of the batch and of the parameters: more parts need less memory.
  mesh.fsdp = 1
  mesh.tensor = 1  # Parts of each layer: attention heads and MLP columns.

  # --- logging, evaluation and checkpoints (0: only at the last step)
  config.log_every = 10  # Steps between lines of loss, learning rate, images/s.
  # Steps between evaluations, on the validation split or else the test split.
  config.eval_every = 100
  config.checkpoint_every = 1000  # Steps between checkpoints.
  config.keep = 2  # Number of newest checkpoints to keep.
  # Also keep the best checkpoint by this metric: accuracy_test, …; '': none.
  config.best_metric = ''
  # Best value: max or min. '': as the task defines for its own metrics, and min
  # for loss_…. Other metrics need it.
  config.best_direction = ''
  # Stop after this number of evaluations without improvement. The metric is
  # best_metric, or else the main metric of the task. 0: do not stop early.
  config.patience = 0
  # Also send metrics and pictures to a tracker: none, wandb or mlflow. If the
  # tracker fails, the run continues.
  config.tracker = 'none'

  # Evaluators on datasets of their own, by name; see `add_evaluator`.
  config.evaluators = ml_collections.ConfigDict()

  # --- compilation
  # Folder of compiled programs. '': ~/.cache/vit_jax/compiled. off: no cache.
  config.compilation_cache_dir = ''
  return config.lock()


def for_dataset(dataset: str) -> ConfigDict:
  """Returns all settings, with a dataset's preset or else a short schedule."""
  config = get_config()
  config.dataset = dataset
  config.update(DATASETS.get(dataset, OTHER_DATASET))
  return config


def add_evaluator(
  config: ConfigDict, name: str, type: str, **changes: Any
) -> None:
  """Adds an evaluator to `config.evaluators`, which a run measures.

  The metrics are METRIC_NAME, such as accuracy_k20_neighbors for the name
  'neighbors'. The options of each type are in `vit_jax/evaluators/options.py`.

  Args:
    config: from `get_config`.
    name: a name of letters, digits and underscores.
    type: a key of `options.TYPES`, such as 'knn'.
    **changes: settings that differ: dataset, train_split, test_split, every,
      and the options of the type.

  Raises:
    ValueError: the type is unknown.
  """
  optional = config_dict.placeholder
  settings = ml_collections.ConfigDict()
  settings.type = type
  settings.dataset = ''  # Dataset. '': the data of the run.
  # Splits of the dataset. '': as for this dataset in a run of its own; of the
  # data of the run, the validation split or else the test split.
  settings.train_split = settings.test_split = ''
  settings.every = optional(int)  # Steps between. None: eval_every. 0: the end.
  try:
    settings.update(options.defaults(type))
  except ValueError as error:
    raise ValueError(f'config.evaluators.{name}.type: {error}') from error
  settings.lock().update(changes)
  with config.unlocked():
    config.evaluators[name] = settings


def set_model(config: ConfigDict, model: str) -> None:
  """Sets the model of an experiment: an architecture, or weights.

  Args:
    config: from `get_config`.
    model: name of an architecture, whose published weights are used; or a path
      or URL of weights, whose architecture and image size are used.
  """
  config.model.name = model
  path = os.path.expanduser(model)
  if '://' in model or os.path.exists(path) or os.sep in model:
    config.model.name, config.pretrained = 'weights', model
    config.pp.crop = 0


def augments(config: ConfigDict) -> bool:
  """Returns whether `config.augment` changes training images."""
  return _augmentation(config).is_on


def image_size(config: ConfigDict) -> tuple[int, int]:
  """Returns (height, width) of the model's images, in pixels."""
  return config.pp.crop, config.pp.crop_width or config.pp.crop


def resizing(config: ConfigDict) -> Resizing:
  """Returns how images are resized in evaluation."""
  return Resizing(
    resize=config.pp.resize,
    crop_fraction=config.pp.crop_fraction,
    interpolation=config.pp.interpolation,
  )


def cropping(config: ConfigDict) -> Cropping:
  """Returns how training images are cropped and flipped."""
  return Cropping(
    min_area=config.pp.min_area,
    flip=config.pp.flip,
    kind=config.pp.train_crop,
    size=config.pp.train_size,
    interpolation=config.pp.train_interpolation,
    resize_on=config.pp.train_resize_on,
  )


# Changes of settings to read each example once, in the stored order.
ONE_PASS = {'in_memory_bytes': 0, 'sampling': 'uniform', 'repeats': 1}


def data_settings(config: ConfigDict, **changes: Any) -> DataSettings:
  """Returns the `DataSettings` of a config.

  Args:
    config: from `get_config`.
    **changes: settings that replace the config's, such as `in_memory_bytes=0`.
  """
  names = (
    *('dataset', 'train_split', 'test_split', 'validation', 'tfds_data_dir'),
    *('labels', 'label_column', 'file_column', 'label_separator', 'group_by'),
    *('data_on', 'device_data_bytes'),
    *('task', 'in_memory_bytes', 'shuffle_buffer', 'max_bad_images'),
    'sampling',
    *('batch', 'batch_eval', 'seed', 'repeats'),
  )
  return DataSettings(
    **{
      **{name: config[name] for name in names},
      'image_size': image_size(config),
      'target_names': tuple(config.targets.names),
      'cropping': cropping(config),
      'exif': config.pp.exif,
      'background': config.pp.background,
      'resizing': resizing(config),
      **changes,
    }
  )


def check_complete(config: ConfigDict, name: str = 'the config') -> None:
  """Raises ValueError if a config, which has this name, lacks settings."""
  missing = sorted(flatten(get_config()).keys() - flatten(config).keys())
  if missing:
    raise ValueError(
      f'{name} has no {", ".join(missing[:3])}'
      f'{", …" * (len(missing) > 3)}. Its get_config() must start from '
      'base_config.get_config(), which has every setting'
    )


def validate(config: ConfigDict) -> None:
  """Raises ValueError for the first setting with a wrong value."""
  positive = (
    *('batch', 'batch_eval', 'base_lr', 'rsqrt_timescale', 'shuffle_buffer'),
    *('keep', 'pp.min_area', 'layer_decay', 'drop_factor', 'repeats'),
    *(() if config.model.name == 'weights' else ('pp.crop',)),
  )
  at_least_0 = (
    *('seed', 'warmup_steps', 'log_every', 'eval_every', 'checkpoint_every'),
    *('grad_norm_clip', 'skip_nonfinite', 'weight_decay', 'linear_end'),
    *('cooldown_steps', 'patience', 'total_epochs', 'total_steps'),
    *('warmup_epochs', 'dino.frozen_epochs'),
    *('in_memory_bytes', 'pp.crop_width', 'array_norm_clip', 'muon_rms'),
    *('cosine_end', 'warmup_start', 'ema_warmup_power', 'sam.rho'),
    *('sam.alpha', 'device_data_bytes'),
  )
  fractions = ('pp.min_area', 'max_bad_images', 'layer_decay')
  below_1 = (
    *('momentum', 'adam_b1', 'adam_b2', 'label_smoothing', 'lion_b1'),
    *('lion_b2', 'muon_momentum', 'adafactor_b2_cap', 'drop_factor'),
    'ema_decay',
  )
  flat = flatten(config)
  for names, holds, expected in (
    (positive, lambda x: 0 < x < math.inf, 'greater than 0 and finite'),
    (at_least_0, lambda x: x >= 0, 'at least 0'),
    (('seed',), lambda x: x < 2**32, f'less than {2**32}: a seed has 32 bits'),
    (fractions, lambda x: 0 <= x <= 1, 'from 0 to 1'),
    (below_1, lambda x: 0 <= x < 1, 'at least 0 and below 1'),
  ):
    for name in names:
      if not holds(flat[name]):
        raise ValueError(f'config.{name}={flat[name]} must be {expected}')
  _augmentation(config).check(config.batch)
  if not config.total_steps and not config.total_epochs:
    raise ValueError(
      'config.total_steps=0 must be greater than 0, unless config.total_epochs '
      'is set'
    )
  if config.total_steps and config.total_epochs:
    raise ValueError(
      f'config.total_steps={config.total_steps} and config.total_epochs='
      f'{config.total_epochs} both give the length of the run. Set one of them '
      'to 0'
    )
  if config.warmup_steps and config.warmup_epochs:
    raise ValueError(
      f'config.warmup_steps={config.warmup_steps} and config.warmup_epochs='
      f'{config.warmup_epochs} are both set. Set one of them to 0'
    )
  if config.accum_steps != 'auto' and not (
    isinstance(config.accum_steps, int) and config.accum_steps > 0
  ):
    raise ValueError(
      f'config.accum_steps={config.accum_steps!r} must be an integer of 1 or '
      "more, or 'auto'"
    )
  for name in config.mesh:
    if flat[f'mesh.{name}'] < 1 and flat[f'mesh.{name}'] != -1:
      raise ValueError(
        f'config.mesh.{name}={flat[f"mesh.{name}"]} must be 1 '
        'or more, or -1 for all remaining devices'
      )
  if list(config.mesh.values()).count(-1) > 1:
    raise ValueError(
      f'config.mesh: only one of {", ".join(config.mesh)} may be -1. Set the '
      'others to 1 or more'
    )
  types = ('float32', 'bfloat16')
  for name, known in (
    ('model.dtype', types),
    ('momentum_dtype', types),
    ('pretrained_head', ('fresh', 'keep')),
    ('sampling', ('uniform', 'balanced')),
    ('data_on', ('host', 'device')),
    ('best_direction', ('', 'max', 'min')),
    ('tracker', ('none', 'wandb', 'mlflow')),
  ):
    if flat[name] not in known:
      names = list(filter(None, known))
      (near,) = difflib.get_close_matches(str(flat[name]), names, 1, 0)
      raise ValueError(
        f'config.{name}={flat[name]!r} is not one of {", ".join(names)}. The '
        f'nearest name is {near}'
      )
  try:
    decoding.resolve(config.pp.exif, config.pp.background)
    resizing(config)
    if config.model.name != 'weights':
      cropping(config).check(image_size(config))
  except ValueError as error:
    raise ValueError(f'config.pp.{error}') from error
  if config.ema_warmup_power and not config.ema_decay:
    raise ValueError(
      f'config.ema_warmup_power={config.ema_warmup_power} needs '
      'config.ema_decay, which is 0. Set it, or remove this setting'
    )
  _check_targets(config)
  _check_class_weights(config)
  _check_evaluators(config)
  if flat['patience'] and not flat['eval_every']:
    raise ValueError(
      f'config.patience={flat["patience"]} counts evaluations, but with '
      'config.eval_every=0 there are none before the last step. Use '
      'config.eval_every=100, for instance.'
    )
  validation = flat['validation']
  if not isinstance(validation, str | int | float) or (
    not isinstance(validation, str) and validation < 0
  ):
    raise ValueError(
      f'config.validation={validation!r} must be a fraction below 1, a number '
      'of training images, or the name of a split'
    )


def check_used(config: ConfigDict) -> None:
  """Raises ValueError for a setting of a run that another one turns off."""
  flat, defaults = flatten(config), flatten(get_config())
  for start, task in _OF_TASKS.items():
    for name in flat:
      if name.partition('.')[0] == start and flat[name] != defaults.get(name):
        if config.task not in (task, 'own'):
          raise ValueError(
            f'config.{name}={flat[name]!r} is only used with config.task='
            f'{task}, not with config.task={config.task}. Remove this setting'
          )
  if config.pretrained_head == 'keep' and config.pretrained == 'scratch':
    raise ValueError(
      'config.pretrained_head=keep keeps the head of the weights, but '
      'config.pretrained=scratch uses none. Remove one of these settings'
    )
  if config.best_direction and not config.best_metric:
    raise ValueError(
      f'config.best_direction={config.best_direction!r} is only used with '
      'config.best_metric. Set it, or remove this setting'
    )


def _augmentation(config):
  """Returns the `Settings` of `config.augment`."""
  # Help pages list all settings, and load no JAX.
  from vit_jax.augment import augmentation

  return augmentation.Settings(**config.augment)


def _check_targets(config):
  """Raises ValueError for the first wrong setting of `config.targets`."""
  targets = config.targets
  if config.task in ('classification', 'multi_label') and any(targets.values()):
    raise ValueError(
      'config.targets is only used with config.task=regression, not with '
      f'config.task={config.task}. Remove these settings'
    )
  for name in ('names', 'units'):
    if not all(isinstance(x, str) for x in targets[name]):
      raise ValueError(f'config.targets.{name}={targets[name]!r} must be texts')
  for name in targets.names:
    if not re.fullmatch(r'\w+', name):
      raise ValueError(
        f'config.targets.names has {name!r}, but a name is part of the names '
        'of metrics. Use letters, digits and underscores'
      )
  for name in ('mean', 'std'):
    if not all(
      isinstance(x, int | float) and not isinstance(x, bool)
      for x in targets[name]
    ):
      raise ValueError(
        f'config.targets.{name}={targets[name]!r} must be numbers'
      )
  if bool(targets.mean) != bool(targets.std):
    raise ValueError(
      f'config.targets.mean={targets.mean} and config.targets.std='
      f'{targets.std} must be set together, or not at all'
    )


def _check_evaluators(config):
  """Raises ValueError for the first wrong setting of `config.evaluators`."""
  for name, settings in config.evaluators.items():
    where = f'config.evaluators.{name}'
    if not re.fullmatch(r'\w+', name) or name in _RESERVED:
      raise ValueError(
        f'{where}: the name must have letters, digits and underscores, and '
        f'must not be one of {", ".join(_RESERVED)}'
      )
    if settings.every is not None and settings.every < 0:
      raise ValueError(f'{where}.every={settings.every} must be at least 0')
    if not settings.dataset and settings.train_split:
      raise ValueError(
        f'{where}.train_split={settings.train_split!r} is only used with '
        f'{where}.dataset. The training images of the run are its train split'
      )
    names = options.defaults(settings.type)
    options.check({x: settings[x] for x in names}, f'{where}.')


def _check_class_weights(config):
  """Raises ValueError if `config.class_weights` is wrong."""
  weights = config.class_weights
  if not weights:
    return
  if config.task != 'classification':
    raise ValueError(
      f'config.class_weights={weights!r} is only used with '
      f'config.task=classification, not with config.task={config.task}. Remove '
      'this setting'
    )
  if weights == 'balanced':
    if config.sampling == 'balanced':
      raise ValueError(
        "config.class_weights='balanced' and config.sampling='balanced' would "
        'correct the same imbalance twice. Use one of them'
      )
  elif not isinstance(weights, tuple) or not all(
    isinstance(x, int | float) and not isinstance(x, bool) and x > 0
    for x in weights
  ):
    raise ValueError(
      f"config.class_weights={weights!r} must be '', 'balanced' or a tuple "
      'with a positive number for each class'
    )


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns {'pp.crop': 384, …}, the value of each setting."""
  flat = {}
  for name, value in config.items(preserve_field_references=False):
    if isinstance(value, ml_collections.ConfigDict):
      flat.update({f'{name}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat
