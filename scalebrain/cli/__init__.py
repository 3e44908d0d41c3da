"""Commands: parse, call, print; nothing else.

A command of its own module is registered by its import here.
"""

from scalebrain.cli import analyses, data, preprocessing, study
from scalebrain.cli.app import cli, main
from scalebrain.cli.bids import bids_main

__all__ = ["analyses", "bids_main", "cli", "data", "main", "preprocessing", "study"]
