"""``python -m asgi_mlperf``: the command line where its script is not on the path."""

import sys

from asgi_mlperf.cli import main

sys.exit(main())
