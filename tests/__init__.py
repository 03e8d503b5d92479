"""Tests, in the same folders as the modules of the package."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
