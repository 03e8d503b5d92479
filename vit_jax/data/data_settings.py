"""What decides which examples there are, and what batches are made of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Settings of the data; `base_config` says what each means.

  Attributes:
    dataset: 'digits', else a folder, else a TFDS name.
    image_size: (height, width) of the model's images in pixels.
    train_split: TFDS split, or sub-folder of a folder.
    test_split: likewise.
    validation: training examples set apart; '' for none.
    tfds_data_dir: of prepared TFDS sets; '' is TFDS's own.
    in_memory_bytes: larger TFDS splits are streamed.
    shuffle_buffer: examples; of streamed sets.
    max_bad_images: fraction of undecodable images tolerated.
    batch: training examples in a global batch.
    batch_eval: likewise, in evaluation.
    seed: of the order and of the augmentation.
    min_area: least fraction of the area in a random crop.
    flip: whether half of the training images are flipped.
  """

  dataset: str
  image_size: tuple[int, int]
  train_split: str = 'train'
  test_split: str = 'test'
  validation: str | float | int = ''
  tfds_data_dir: str = ''
  in_memory_bytes: int = 4 * 2**30
  shuffle_buffer: int = 50_000
  max_bad_images: float = 0.05
  batch: int = 512
  batch_eval: int = 512
  seed: int = 0
  min_area: float = 0.05
  flip: bool = True
