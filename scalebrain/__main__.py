"""``python -m scalebrain``."""

from scalebrain.cli import main

if __name__ == "__main__":
    main()
