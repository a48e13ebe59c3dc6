"""`python -m ming`, which is also the command `ming`."""

import sys

from ming.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
