"""Our lines in docs/from_other_libraries.md run, with small files."""

import re

import numpy as np
import pytest

from tests import placed_values
from tests import reference
from tests import ROOT
from tests.checkpoint import test_narrow_models
from vit_jax import models
from vit_jax.checkpoint import weights_file

PAGE = (ROOT / 'docs' / 'from_other_libraries.md').read_text('utf-8')
BLOCKS = re.findall(
  r'<!-- ours: (\w+) -->\n```python\n(.*?)^```$', PAGE, re.DOTALL | re.M
)
PHOTO = reference.JPEGS / '3_375x500.jpg'


def test_every_library_has_our_lines():
  assert [name for name, _ in BLOCKS] == [
    *('hf_vit', 'hf_dinov3', 'hf_vit', 'clip_quickgelu', 'npz', 'npz')
  ]
  assert len(re.findall('^## ', PAGE, re.M)) == 4


def write_npz(path):
  """Writes a small model of the original layout, and returns its images."""
  model = models.get_model('testing', num_classes=5)
  size = (2 * model.patch_size,) * 2
  weights_file.save(path, reference.initial_params(model, size))
  return placed_values.images(size)


@pytest.mark.slow
@pytest.mark.parametrize('name, code', BLOCKS)
def test_our_lines_run(name, code, tmp_path):
  names = {}
  if name == 'npz':
    names['images'] = write_npz(tmp_path / 'x.npz')
    code = re.sub(r"'[\w-]+\.npz'", repr(str(tmp_path / 'x.npz')), code)
    code = code.replace("'ViT-B_16'", "'testing'")
  else:
    test_narrow_models.load(tmp_path, name)
    code = re.sub(r"'hf://[^']*'", repr(str(tmp_path)), code)
  code = code.replace("'photo.jpg'", repr(str(PHOTO)))
  if 'import vit_jax' not in code:
    code = f'import vit_jax\n{code}'
  exec(code, names)  # code of our page
  expected = {
    'logits': (7,),
    'features': (48,),
    'patches': (2, 2, 48),
  }  # of one image
  for key in ('logits', 'features', 'patches', 'grid', 'tokens'):
    if key in names:
      assert np.isfinite(names[key]).all() and np.ptp(names[key]) > 0, key
      if name.startswith('hf') and key in expected:
        assert names[key].shape == expected[key]
