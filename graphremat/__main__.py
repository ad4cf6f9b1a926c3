"""``python -m graphremat``: the same as the command ``graphremat``."""

from graphremat.cli import main

if __name__ == "__main__":
    main()
