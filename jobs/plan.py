"""`bft-ray plan` as a job: ray job submit --working-dir . -- python -m jobs.plan CONFIG [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
