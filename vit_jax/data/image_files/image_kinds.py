"""The kinds of image files: which are read, and which are only known by name.

A file with a known suffix is of the kind of its suffix, as far as a list of
files is concerned. A file without a suffix is of the kind of its first bytes.
The decoder only uses the first bytes: a PNG file may be called `photo.jpg`.
"""

from collections.abc import Iterable
import importlib.util
import os

from vit_jax.files import regular_files

HEIC_EXTRA = "pip install 'vit_jax[heic]'"
HEADER_BYTES = 32  # enough for `of_header`

# {kind: suffixes} of the files that TensorFlow or Pillow decodes.
_READ = {
  'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'),
  'PNG': ('.png', '.apng'),
  'GIF': ('.gif',),
  'BMP': ('.bmp', '.dib'),
  'WebP': ('.webp',),
  'TIFF': ('.tif', '.tiff'),
  'AVIF': ('.avif', '.avifs'),
  'JPEG 2000': ('.jp2', '.j2k', '.jpx', '.j2c', '.jpc', '.jpf'),
  'ICO': ('.ico',),
  'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
}
_HEIC = {'HEIC': ('.heic', '.heif', '.hif', '.heics', '.heifs')}
# {kind: suffixes} of files that contain pictures, but are never read.
_NEVER = {
  'RAW photo': (
    *('.cr2', '.cr3', '.crw', '.nef', '.nrw', '.arw', '.sr2', '.dng', '.raf'),
    *('.orf', '.rw2', '.pef', '.srw', '.x3f', '.3fr', '.iiq', '.raw'),
  ),
  'Photoshop file': ('.psd', '.psb'),
  'vector drawing': ('.svg', '.svgz', '.eps', '.ai', '.wmf', '.emf'),
  'PDF': ('.pdf',),
  'JPEG XL': ('.jxl',),
  'HDR image': ('.exr', '.hdr'),
  'medical image': ('.dcm', '.nii'),
  'GIMP file': ('.xcf',),
  'TGA': ('.tga',),
  'video': (
    *('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.3gp'),
    *('.wmv', '.mts', '.m2ts', '.flv'),
  ),
}
_KIND_OF = {
  suffix: kind
  for kinds in (_READ, _HEIC, _NEVER)
  for kind, suffixes in kinds.items()
  for suffix in suffixes
}
SUFFIXES = tuple(suffix for kind in _READ.values() for suffix in kind)
_ADVICE = {
  'HEIC': f'install the package that reads it: {HEIC_EXTRA}',
  'video': 'extract single images',
  'vector drawing': 'draw it as PNG',
  'PDF': 'draw its pages as PNG',
}
# (position, first bytes, kind). The first match counts.
_HEADERS = (
  (0, b'\xff\xd8\xff', 'JPEG'),
  (0, b'\x89PNG\r\n\x1a\n', 'PNG'),
  (0, b'GIF8', 'GIF'),
  (8, b'WEBP', 'WebP'),
  (8, b'AVI ', 'video'),
  (8, b'CR\x02', 'RAW photo'),
  (0, b'II*\0', 'TIFF'),
  (0, b'MM\0*', 'TIFF'),
  (0, b'II+\0', 'TIFF'),
  (0, b'MM\0+', 'TIFF'),
  (0, b'\0\0\0\x0cjP  ', 'JPEG 2000'),
  (0, b'\xff\x4f\xff\x51', 'JPEG 2000'),
  (0, b'\0\0\1\0', 'ICO'),
  (0, b'BM', 'BMP'),
  (0, b'8BPS', 'Photoshop file'),
  (0, b'%PDF', 'PDF'),
  (0, b'%!PS', 'vector drawing'),
  (0, b'<svg', 'vector drawing'),
  (0, b'\xff\x0a', 'JPEG XL'),
  (0, b'\0\0\0\x0cJXL ', 'JPEG XL'),
  (0, b'FUJIFILMCCD-RAW', 'RAW photo'),
  (0, b'IIRO', 'RAW photo'),
  (0, b'IIU\0', 'RAW photo'),
  (0, b'\x1a\x45\xdf\xa3', 'video'),
)
_BRANDS = {  # of the file format of MP4, from byte 8
  b'avif': 'AVIF',
  b'avis': 'AVIF',
  **dict.fromkeys(
    (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1'), 'HEIC'
  ),
  b'crx ': 'RAW photo',
}


def of_header(header: bytes) -> str | None:
  """Returns the kind of a file from its first `HEADER_BYTES`; None: unknown."""
  if header[4:8] == b'ftyp':
    return _BRANDS.get(header[8:12], 'video')
  if header[:1] == b'P' and header[1:2] in b'123456':
    return 'PPM' if header[2:3] in (b' ', b'\n', b'\r', b'\t', b'#') else None
  for position, start, kind in _HEADERS:
    if header.startswith(start, position):
      return kind
  return None


def of_suffix(path: str) -> str | None:
  """Returns the kind of a file from its suffix, in any case; None: unknown."""
  return _KIND_OF.get(os.path.splitext(path)[1].lower())


def of_file(path: str) -> str | None:
  """Returns the kind of a file; None if it is not an image of a known kind.

  The suffix decides. Only a file without a suffix is read. Hidden files, and
  files that cannot be read, have no kind.
  """
  name = os.path.basename(path)
  if name.startswith('.'):
    return None
  if os.path.splitext(name)[1]:
    return of_suffix(name)
  if regular_files.other_kind(path):
    return None
  try:
    with open(path, 'rb') as file:
      return of_header(file.read(HEADER_BYTES))
  except OSError:
    return None


def reads_heic() -> bool:
  """Returns whether the package that decodes HEIC files is installed."""
  return importlib.util.find_spec('pillow_heif') is not None


def is_read(kind: str | None) -> bool:
  """Returns whether files of a kind are decoded."""
  return kind in _READ or (kind == 'HEIC' and reads_heic())


def advice(kind: str) -> str:
  """Returns what a user can do with files of a kind that is not read."""
  return _ADVICE.get(kind, 'convert it to PNG or JPEG')


def describe_unread(kind: str) -> str:
  """Returns a text about a file of a kind that is not read."""
  return f'of kind {kind}, which is not read ({advice(kind)})'


def describe_unread_files(paths: Iterable[str]) -> str:
  """Returns a text that counts files that are not read; '' for no file.

  Args:
    paths: files of kinds for which `is_read` is false.

  Returns:
    '12 of kind video (extract single images): a.mov, b.mov, c.mov, …'.
  """
  by_kind = {}
  for path in paths:
    by_kind.setdefault(of_file(path), []).append(path)
  return '; '.join(
    f'{len(some)} of kind {kind} ({advice(kind)}): '
    + ', '.join(some[:3])
    + ', …' * (len(some) > 3)
    for kind, some in sorted(by_kind.items(), key=lambda x: (-len(x[1]), x[0]))
  )
