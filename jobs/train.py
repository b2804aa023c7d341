"""`bft-ray train` as a job: ray job submit --working-dir . -- python -m jobs.train CONFIG [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
