import pytest

from vit_jax.checkpoint.pretrained import augreg
from vit_jax.checkpoint.pretrained import search

# As in the published index, a file has several rows, which differ in the
# fine-tuning. The expected files are the best only in the column `final_val`.
ROWS = """\
name,ds,best_val,final_val,final_test,adapt_final_val,adapt_final_test,filename
R_Ti_16,i21k,0.9,0.30,0.9,0.9,0.9,R_Ti_16-i21k-300ep-light1
R_Ti_16,i21k,0.7,0.345,0.7,0.8,0.7,R_Ti_16-i21k-300ep-none
R_Ti_16,i21k,0.7,0.345,0.7,0.7,0.8,R_Ti_16-i21k-300ep-none
R_Ti_16,i1k,0.9,0.9,0.9,0.9,0.9,R_Ti_16-i1k-300ep-none
R_Ti_16,i21k_30,0.9,0.8,0.9,0.9,0.9,R_Ti_16-i21k_30-none
Ti_16,i21k,0.9,0.5,0.9,0.9,0.9,Ti_16-i21k-300ep-none
B_16,i21k,0.6,0.09,0.6,0.6,0.6,B_16-i21k-300ep-a
B_16,i21k,0.5,0.1,0.5,0.5,0.5,B_16-i21k-300ep-b
"""


@pytest.fixture(name='index')
def fixture_index(tmp_path):
  (tmp_path / 'index.csv').write_text(ROWS)
  return str(tmp_path / 'index.csv')


def test_the_index_gives_the_best_file(index):
  assert augreg.choose(index, 'R_Ti_16') == 'R_Ti_16-i21k-300ep-none'
  assert augreg.choose(index, 'B_16') == 'B_16-i21k-300ep-b'


def test_an_invalid_index(index, tmp_path):
  with pytest.raises(ValueError, match='lists no file of L_16'):
    augreg.choose(index, 'L_16')
  for text in (
    '',
    '\0\0',
    ROWS.replace('0.345', 'x'),
    ROWS.replace('final_val', 'y'),
    'name,ds\nR_Ti_16,i21k\n',
  ):
    (tmp_path / 'index.csv').write_text(text)
    with pytest.raises(ValueError, match='index.csv (is not an|lists no)'):
      augreg.choose(index, 'R_Ti_16')


def test_an_index_and_a_file_downloaded_by_hand(index, tmp_path):
  path = tmp_path / 'R_Ti_16-i21k-300ep-none.npz'
  path.write_bytes(b'')
  assert search.find('R_Ti_16', str(tmp_path), sources=()) == str(path)
