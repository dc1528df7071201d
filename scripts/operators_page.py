"""Prints docs/operators.md from the tables in the code, or writes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdfq_export.operators import page

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
if parser.parse_args().write:
    PAGE.write_text(page())
else:
    print(page(), end="")
