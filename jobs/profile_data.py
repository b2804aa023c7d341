"""`bft-ray profile` as a job: ray job submit --working-dir . -- python -m jobs.profile_data CONFIG [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))
