"""Lists the known architectures: sizes, published files, what loads.

Examples:
  List the names and sizes of all architectures:
    python -m vit_jax models
  List those whose names contain a text, with their files on the Hub:
    python -m vit_jax models dinov3
  List the published files of one architecture:
    python -m vit_jax models vit_base_patch16_clip_224

The table has the architectures of this library, the Vision Transformers and
Mixers of timm, and the model types of Hugging Face. Without a filter, timm's
files are not listed. Weights of timm have addresses such as
hf://timm/vit_small_patch14_dinov2.lvd142m.

Exit status:
  0  something was listed
  2  no name contains the text
"""

from collections.abc import Iterator
from collections.abc import Sequence

from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser('vit_jax models', '[TEXT]', __doc__)
  parser.add(
    'Arguments',
    'text',
    names=('text',),
    nargs='?',
    default='',
    metavar='TEXT',
    help='part of a name (default: all names)',
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and returns the exit status."""
  parser = make_parser()
  args = parser.parse_args(argv)
  with errors.exit_on_error(flags=parser.flags):
    rows = [row for row in _rows() if args.text.lower() in row[0].lower()]
    if not rows:
      raise ValueError(
        f'no name contains {args.text!r}. `python -m vit_jax models` lists all '
        'names.'
      )
    width = max(len(row[0]) for row in rows)
    for name, sizes, files in rows:
      print(f'{name:{width}}  {sizes}')
      for file in files if args.text else ():
        print(f'    {file}')
  return 0


def _rows() -> Iterator[tuple[str, str, list[str]]]:
  """Yields (name, sizes or the reason of a refusal, published files)."""
  from vit_jax.checkpoint.other_libraries import hugging_face
  from vit_jax.checkpoint.other_libraries import timm_settings
  from vit_jax.checkpoint.other_libraries import timm_table
  from vit_jax.models import variants

  for name, settings in variants.VARIANTS.items():
    if not name.startswith('testing'):
      yield name, _sizes(settings), []
  for name in variants.TWO_TOWERS:
    yield name, 'image and text tower (python -m vit_jax zero_shot)', []
  for name in timm_table.names():
    facts = timm_table.facts_of(name)
    try:
      described = _sizes(timm_settings.settings_of(facts))
    except ValueError as error:
      described = f'not supported: {error}'
    files = [
      f'hf://timm/{name}.{tag}  images {file["input_size"][1]} px, '
      f'{file["num_classes"]} classes, license {file["license"] or "unknown"}'
      for tag, file in timm_table.published(name).items()
    ]
    yield name, described, files
  for name in hugging_face.model_types():
    yield name, 'model_type of Hugging Face', []


def _sizes(settings):
  """Returns a text of the sizes of a model."""
  parts = (
    ('patch_size', 'patch'),
    ('hidden_size', 'width'),
    ('num_layers', 'depth'),
    ('num_heads', 'heads'),
    ('num_units', 'units'),
  )
  return ', '.join(
    f'{label} {settings[name]}' for name, label in parts if name in settings
  )
