"""``python -m mlm`` is ``mlm``."""

import sys

from mlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
