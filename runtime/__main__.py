"""`python -m nucleus_gvisor.runtime` is the command line."""

import sys

from nucleus_gvisor.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
