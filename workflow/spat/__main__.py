"""``python -m spat STAGE``: the same entry point as the console script ``spat``."""

from spat.pipeline.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
