"""`python -m replay …`: see command.py."""

import sys

from replay.command import main

if __name__ == "__main__":
    sys.exit(main())
