"""The grid of patches over an image."""


def grid_size(height, width, stride):
  """Patches down and across an image of `height` × `width` pixels.

  Args:
    height: of the image, in pixels.
    width: of the image, in pixels.
    stride: pixels between two patches.

  Raises:
    ValueError: the stride does not divide a side; says which sizes would do.
  """
  for side, pixels in (('height', height), ('width', width)):
    if pixels % stride or not pixels:
      lower = pixels // stride * stride
      sizes = [size for size in (lower, lower + stride) if size]
      raise ValueError(
          f'image {side} {pixels} is not a multiple of the patch size '
          f'{stride}: use {" or ".join(map(str, sizes))}')
  return height // stride, width // stride
