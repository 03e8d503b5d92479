"""Tests, in the folders of the package."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
