"""`bft-ray after-rl` as a job: ray job submit --working-dir . -- python -m jobs.after_rl [STUDY] [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["after-rl", *sys.argv[1:]]))
