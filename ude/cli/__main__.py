"""``python -m ude.cli``, which is the command ``ude``."""

import sys

from ude.cli import main

sys.exit(main())
