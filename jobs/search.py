"""`ray job submit -- python -m jobs.search SPACE [FIELD=VALUE ...]`: the same as `bft-ray search`.

Addresses with passwords are best given by the job's environment (STUDY_DATABASE, MLFLOW_TRACKING_URI): what stands in
the command is in Ray's record of the job, and in the machine's list of processes.
"""

import sys

from bft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
