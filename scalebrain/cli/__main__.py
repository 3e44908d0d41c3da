"""``python -m scalebrain.cli``."""

from scalebrain.cli import main

main()
