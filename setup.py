"""Installs vit_jax with `pip install -e .`; add `[test]` for the tests."""

import re

from setuptools import find_packages
from setuptools import setup

REPOSITORY = ''  # OWNER/NAME; written by scripts/set_repository.py

# TensorFlow has wheels there; vit_jax does without it elsewhere.
HAS_TENSORFLOW = (
  'python_version < "3.14" and '
  '(sys_platform != "darwin" or platform_machine == "arm64")'
)

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
  package_data={
    'vit_jax.data': ['imagenet/*'],  # class names of ImageNet
    # facts of timm's architectures
    'vit_jax.checkpoint.other_libraries': ['*.json.gz'],
  },
  entry_points={'console_scripts': ['vit_jax = vit_jax.__main__:start']},
  python_requires='>=3.11',
  # scripts/test_versions.py installs the lower bounds and runs the tests.
  # docs/installation.md says which tests have passed with them.
  install_requires=[
    f'clu>=0.0.12; {HAS_TENSORFLOW}',  # TensorBoard scalars
    'filelock>=3.15',  # only one process downloads a file
    'flax>=0.12.0',
    'huggingface_hub>=1.26',  # hf:// addresses and the Hub's cache
    # undeclared need of tensorflow-datasets
    f'importlib_resources>=6.0; {HAS_TENSORFLOW}',
    # JAX 0.8.0 and 0.8.1 compute wrong values outside of jit on CPUs.
    'jax>=0.8.2',
    'matplotlib>=3.9',  # plot of a run's metrics
    'ml-collections>=1.0',
    'ml-dtypes>=0.5.1',  # bfloat16 in weights files
    'numpy>=2.0',
    'optax>=0.2.7',
    'orbax-checkpoint>=0.11.25',
    'pillow>=11.3',  # images that TensorFlow cannot decode, such as AVIF
    'psutil>=5.9.4',  # memory of the machine
    'requests>=2.32.2',  # downloads over HTTPS
    'safetensors>=0.4.3',  # weights of timm and Hugging Face without pickle
    'scikit-learn>=1.5',  # dataset of the quickstart: digits
    'scipy>=1.13.1',  # resamples position embeddings
    'tensorboard>=2.20',  # clu writes its files; displays the curves
    f'tensorflow>=2.20; {HAS_TENSORFLOW}',  # tf.data
    f'tensorflow-datasets>=4.9.10; {HAS_TENSORFLOW}',
    'tqdm>=4.66',  # progress bars
    'urllib3>=2.0.2',  # makes requests reject incomplete responses
  ],
  extras_require={
    'cuda12': ['jax[cuda12]'],
    'cuda13': ['jax[cuda13]'],
    'heic': ['pillow-heif>=0.18'],  # photographs of phones: HEIC, HEIF
    # Trackers: config.tracker. mlflow-skinny alone has no local store.
    'mlflow': ['mlflow-skinny>=3.7', 'alembic>=1.14', 'sqlalchemy>=2.0.36'],
    'wandb': ['wandb>=0.22'],
    # Only for tests that compare with other libraries.
    'interop': [
      'timm>=1.0.31',
      'torch==2.13.0',
      'torchvision==0.28.0',
      'transformers>=5.23',
      'vit-pytorch>=1.16.1',
    ],
    'mutate': ['coverage>=7.17'],  # python -m tests.mutate
    # Those of colabs/. tqdm needs ipywidgets in a notebook.
    'notebooks': ['ipykernel>=6.29', 'ipywidgets>=8.1', 'pandas>=2.2.2'],
    'parquet': ['pyarrow>=18'],  # tables of labels in .parquet
    'tpu': ['jax[tpu]'],
    'test': [
      'vit_jax[heic,mutate,notebooks]',
      'nbclient>=0.10',  # runs the notebooks
      'nbformat>=5.10',
      'pytest>=8.4',
      'pytest-xdist>=3.8',
      'ruff>=0.17',  # checks the code style
      f'tensorflow-text>=2.20; {HAS_TENSORFLOW} and sys_platform != "win32"',
    ],
    'text': ['tensorflow-text>=2.20'],  # tokenizers of LiT
  },
)
