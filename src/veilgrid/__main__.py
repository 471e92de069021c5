"""``python -m veilgrid`` is the command ``veilgrid``."""

from veilgrid.cli import main

if __name__ == "__main__":
    main()
