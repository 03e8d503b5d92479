"""Installs vit_jax with `pip install -e .`; add `[test]` for the tests."""

import re

from setuptools import find_packages
from setuptools import setup

REPOSITORY = ''  # OWNER/NAME; written by scripts/set_repository.py

with open('vit_jax/__init__.py', encoding='utf-8') as file:
  version = re.search(r"__version__ = '(.*)'", file.read()).group(1)

with open('README.md', encoding='utf-8') as file:
  readme = file.read()

setup(
  name='vit_jax',
  version=version,
  description='Vision Transformers in JAX and Flax',
  long_description=readme,
  long_description_content_type='text/markdown',
  author='The vit_jax developers',
  license='Apache-2.0',
  url=f'https://github.com/{REPOSITORY}' if REPOSITORY else None,
  packages=find_packages(include=['vit_jax', 'vit_jax.*']),
  package_data={'vit_jax.data': ['imagenet/*']},  # class names of ImageNet
  entry_points={'console_scripts': ['vit_jax = vit_jax.__main__:start']},
  python_requires='>=3.11',
  # Each lower bound is the oldest version that passed the tests.
  install_requires=[
    'clu>=0.0.12',  # TensorBoard scalars
    'filelock>=4.3',  # only one process downloads a file
    'flax>=0.12.8',
    'huggingface_hub>=2.4',  # hf:// addresses and the Hub's cache
    'importlib_resources>=6.0',  # undeclared need of tensorflow-datasets
    'jax>=0.10.2',
    'matplotlib>=3.10',  # plot of a run's metrics
    'ml-collections>=1.1',
    'ml-dtypes>=0.5',  # bfloat16 in weights files
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow>=12.0',  # BMP images; TensorFlow decodes only some
    'requests>=2.34',  # downloads over HTTPS
    'safetensors>=0.8',  # weights of timm and Hugging Face without pickle
    'scikit-learn>=1.8',  # dataset of the quickstart: digits
    'scipy>=1.15',  # resamples position embeddings
    'tensorboard>=2.20',  # clu writes its files; displays the curves
    'tensorflow>=2.21',  # tf.data
    'tensorflow-datasets>=4.9.9',
    'tqdm>=4.70',  # progress bars
    'urllib3>=2.8',  # makes requests reject incomplete responses
  ],
  extras_require={
    'cuda12': ['jax[cuda12]'],
    'cuda13': ['jax[cuda13]'],
    # Only for tests that compare with other libraries.
    'interop': [
      'timm>=1.0.31',
      'torch==2.13.0',
      'torchvision==0.28.0',
      'transformers>=5.23',
    ],
    'mutate': ['coverage>=7.17'],  # python -m tests.mutate
    'tpu': ['jax[tpu]'],
    'test': [
      'vit_jax[mutate]',
      'pytest>=8.4',
      'pytest-xdist>=3.8',
      'ruff>=0.17',  # checks the code style
      'tensorflow-text>=2.21',
    ],
    'text': ['tensorflow-text>=2.21'],  # tokenizers of LiT
  },
)
