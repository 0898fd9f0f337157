"""``python -m nrg_sampler`` is ``nrg-sampler``."""

from __future__ import annotations

import sys

from nrg_sampler.cli import main

if __name__ == "__main__":
    sys.exit(main())
