"""``python -m medpfl``, for machines where the command ``medpfl`` is not on the path."""

import sys

from medpfl.cli import main

if __name__ == "__main__":
    sys.exit(main())
