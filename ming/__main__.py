"""`python -m ming`: see `ming.cli.main`."""

import sys

from ming.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
