"""`python -m ming`: see `ming.command_line`."""

import sys

from ming.command_line import main

if __name__ == "__main__":
    sys.exit(main())
