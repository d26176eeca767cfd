"""The entry point, apart from the demo so that a missing package is said in one sentence."""

from __future__ import annotations

import sys

try:
    from example_app.demo.command import main
except ModuleNotFoundError as error:
    sys.exit(
        f"The demo needs the package {error.name!r}, which is not installed. "
        "Run `make demo`, or: pip install -e '.[example]' --group demo"
    )

if __name__ == "__main__":
    sys.exit(main())
