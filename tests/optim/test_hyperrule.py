"""The numbers of BiT's fine-tuning."""

import pytest

from vit_jax.optim import hyperrule


@pytest.mark.parametrize(
  'num_examples, expected',
  [
    (19_999, (500, 100, (200, 300, 400), 0.0)),
    (20_000, (10_000, 500, (3_000, 6_000, 9_000), 0.1)),
    (499_999, (10_000, 500, (3_000, 6_000, 9_000), 0.1)),
    (500_000, (20_000, 500, (6_000, 12_000, 18_000), 0.1)),
  ],
)
def test_the_length_depends_on_the_number_of_examples(num_examples, expected):
  found = hyperrule.settings(num_examples, (224, 224))
  names = 'total_steps', 'warmup_steps', 'drop_steps', 'augment.mixup'
  assert tuple(found[name] for name in names) == expected


@pytest.mark.parametrize(
  'size, expected',
  [((32, 32), (160, 128)), ((96, 95), (160, 128)), ((96, 96), (512, 480))],
)
def test_the_size_depends_on_the_area_of_the_images(size, expected):
  found = hyperrule.settings(1000, size)
  assert (found['pp.train_size'], found['pp.crop']) == expected
