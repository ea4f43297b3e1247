"""`python -m semcache` is the command `semcache`."""

import sys

from semcache.cli import main

if __name__ == "__main__":
    sys.exit(main())
