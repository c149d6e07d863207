"""``python -m medpfl.cli``."""

import sys

from medpfl.cli import main

if __name__ == "__main__":
    sys.exit(main())
