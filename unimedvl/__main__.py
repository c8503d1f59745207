"""`python -m unimedvl` is the command `unimedvl`."""

import sys

from .commands.main import main

sys.exit(main())
