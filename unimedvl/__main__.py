"""`python -m unimedvl` is the command `unimedvl`."""

import sys

from .command import main

sys.exit(main())
