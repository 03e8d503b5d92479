"""Settings that select the examples and determine the batches."""

from collections.abc import Sequence
import dataclasses

RESIZES = ('squash', 'crop')
INTERPOLATIONS = (
  'bilinear',
  'bilinear_antialias',
  'bicubic_antialias',
  'lanczos_antialias',
)


@dataclasses.dataclass(frozen=True)
class Resizing:
  """How an image becomes an image of the model's size, in evaluation.

  The default is that of the original code. Libraries that resize with Pillow,
  as timm and transformers do, always use anti-aliasing.

  Attributes:
    resize: 'squash' resizes both sides, 'crop' keeps the aspect ratio. Then the
      center is cropped.
    crop_fraction: sides of the center, as a fraction of the resized image. With
      'crop', the smaller side counts.
    interpolation: one of INTERPOLATIONS.
  """

  resize: str = 'squash'
  crop_fraction: float = 1.0
  interpolation: str = 'bilinear'

  def __post_init__(self):
    for name, known in (('resize', RESIZES), ('interpolation', INTERPOLATIONS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is not one of {", ".join(known)}.'
        )
    if not 0 < self.crop_fraction <= 1:
      raise ValueError(
        f'crop_fraction={self.crop_fraction} must be above 0 and at most 1.'
      )

  def __str__(self):
    return ', '.join(
      f'{field.name}={getattr(self, field.name)}'
      for field in dataclasses.fields(self)
    )


DEFAULT_RESIZING = Resizing()
TRAIN_CROPS = ('area', 'squash', 'crop')


@dataclasses.dataclass(frozen=True)
class Cropping:
  """How a training image becomes an image of the model's size, at random.

  Attributes:
    min_area: smallest area of a random crop, as a fraction of the image.
    flip: whether half of the images are flipped.
    kind: 'area' crops a random area, and resizes it. 'squash' and 'crop' resize
      the image as in `Resizing`, and crop a window at a random place.
    size: 'squash' and 'crop': height of the resized image in pixels. With
      'crop', the smaller side counts.
    interpolation: one of INTERPOLATIONS.
    resize_on: 'host', or 'device': the compiled step resizes and flips images.
  """

  min_area: float = 0.05
  flip: bool = True
  kind: str = 'area'
  size: int = 0
  interpolation: str = 'bilinear'
  resize_on: str = 'host'

  def check(self, image_size: tuple[int, int]) -> None:
    """Raises ValueError if the settings are unknown or do not fit."""
    for name, value, known in (
      ('train_crop', self.kind, TRAIN_CROPS),
      ('train_interpolation', self.interpolation, INTERPOLATIONS),
      ('train_resize_on', self.resize_on, ('host', 'device')),
    ):
      if value not in known:
        raise ValueError(f'{name}={value!r} is not one of {", ".join(known)}')
    if self.kind == 'area' and self.size:
      raise ValueError(
        f"train_size={self.size} is not used with train_crop='area'. Use "
        'train_crop=squash or train_crop=crop, or remove this setting'
      )
    if self.kind != 'area' and self.size < image_size[0]:
      raise ValueError(
        f'train_size={self.size} must be at least the height of the images, '
        f'{image_size[0]}, with train_crop={self.kind!r}'
      )
    if self.resize_on == 'device' and (
      (self.kind, self.interpolation) != ('area', 'bilinear')
    ):
      raise ValueError(
        "train_resize_on='device' cannot be used with train_crop="
        f'{self.kind!r} and train_interpolation={self.interpolation!r}: the '
        "device only knows 'area' and 'bilinear'. Use train_resize_on='host'"
      )


DEFAULT_CROPPING = Cropping()


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Settings of the data; `base_config` describes them in detail.

  Attributes:
    dataset: 'digits', a folder of images, an .npz file, or a TFDS name.
    image_size: (height, width) of the model's images in pixels.
    train_split: training split: a TFDS split, or a sub-folder of the folder.
    test_split: test split: a TFDS split, or a sub-folder of the folder.
    validation: held-out training examples; '' for none.
    labels: path of a table of labels; '': found in the folder; 'folders': the
      names of folders.
    label_column: column(s) of the table with the labels; '': found by name.
    file_column: column of the table with the files; '': found by name.
    label_separator: character between the classes of one image; '': found.
    group_by: regular expression, or column of the table; '' for no groups.
    task: name of the task, which decides the kind of labels.
    target_names: names of the targets of a regression.
    tfds_data_dir: folder of prepared TFDS datasets; '' for the default of TFDS.
    data_on: 'host', or 'device' for all examples on each device.
    device_data_bytes: largest number of bytes of images on a device.
    in_memory_bytes: largest TFDS split to keep in memory; others are streamed.
    shuffle_buffer: number of examples in the shuffle buffer, when streaming.
    max_bad_images: largest accepted fraction of undecodable images.
    sampling: 'uniform', or 'balanced' for equally many examples per class.
    batch: number of training examples in a global batch.
    batch_eval: number of evaluation examples in a global batch.
    seed: seed of the order and of the augmentation.
    cropping: how training images are cropped and flipped.
    exif: whether files are turned upright; see `decoding.resolve`.
    background: color under transparent pixels; see `decoding.resolve`.
    repeats: how often each example follows itself in the training stream.
    resizing: how images are resized in evaluation.
  """

  dataset: str
  image_size: tuple[int, int]
  train_split: str = 'train'
  test_split: str = 'test'
  validation: str | float | int = ''
  labels: str = ''
  label_column: str = ''
  file_column: str = ''
  label_separator: str = ''
  group_by: str = ''
  task: str = 'classification'
  target_names: tuple[str, ...] = ()
  tfds_data_dir: str = ''
  data_on: str = 'host'
  device_data_bytes: int = 2 * 2**30
  in_memory_bytes: int = 4 * 2**30
  shuffle_buffer: int = 50_000
  max_bad_images: float = 0.05
  sampling: str = 'uniform'
  batch: int = 512
  batch_eval: int = 512
  seed: int = 0
  cropping: Cropping = DEFAULT_CROPPING
  repeats: int = 1
  exif: str = 'auto'
  background: str = 'auto'
  resizing: Resizing = DEFAULT_RESIZING

  def check_unused(self, names: Sequence[str], why: str) -> None:
    """Raises ValueError if a setting is set that these data do not use.

    Args:
      names: settings that must have their default, ''.
      why: reason, the end of the first sentence of the message.
    """
    for name in names:
      if getattr(self, name) and (name, getattr(self, name)) != NO_LABELS:
        raise ValueError(
          f'config.{name}={getattr(self, name)!r} is not used: {why}. Remove '
          'this setting'
        )


# The setting that ignores the labels of any dataset.
NO_LABELS = 'labels', 'none'
# Settings of the labels of a folder of images.
OF_TABLES = ('label_column', 'file_column', 'label_separator')
OF_FOLDERS = ('labels', *OF_TABLES, 'group_by')
