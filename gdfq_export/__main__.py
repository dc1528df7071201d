"""`python -m gdfq_export` is the command `gdfq-export`."""

from __future__ import annotations

import sys

from gdfq_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
