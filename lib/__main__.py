"""`python -m lib`: see lib.run.cli."""

import sys

from lib.run.cli import main

sys.exit(main())
