"""`bft-ray evaluate` as a job: ray job submit --working-dir . -- python -m jobs.evaluate CONFIG [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
