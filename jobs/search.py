"""`ray job submit -- python -m jobs.search SPACE [FIELD=VALUE ...]`: the same as `bft-ray search`."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
