"""The list of known architectures."""

import pytest

from vit_jax import models as architectures
from vit_jax.checkpoint.other_libraries import timm_table
from vit_jax.commands import models


def test_all_names_are_listed(capsys):
  assert models.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  names = {line.split()[0] for line in lines}
  assert {'ViT-B_16', 'vit_small_patch14_dinov2'} < names
  assert set(timm_table.names()) < names
  unlisted = set(architectures.model_names()) - names
  assert unlisted == {'testing', 'testing-unpooled'}
  assert not any('hf://' in line for line in lines)


def test_names_that_contain_a_text(capsys):
  assert models.main(['Patch16_DINOv3']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert 'hf://timm/vit_base_patch16_dinov3.lvd1689m' in '\n'.join(lines)
  assert all('patch16_dinov3' in line for line in lines)
  assert models.main(['vit_base_patch16_sapiens2']) == 0
  assert 'not supported: ' in capsys.readouterr().out
  with pytest.raises(SystemExit) as error:
    models.main(['nothing'])
  assert error.value.code == 2
