"""`bft-ray fetch` as a job: ray job submit --working-dir . -- python -m jobs.fetch CONFIG_OR_SPACE ... [FIELD=VALUE ...]."""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["fetch", *sys.argv[1:]]))
