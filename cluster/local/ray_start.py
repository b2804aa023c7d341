"""`ray start` that stays on loopback; its arguments are those of `ray start`.

On Linux Ray replaces 127.0.0.1 by the machine's own address and listens on every interface. The variable that stops it
from doing so, `LOOPBACK`, is one for other systems, where `ray start` then refuses a second node.
"""

from __future__ import annotations

import sys

from bft_ray.workers.ray_private import stay_on_loopback

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # for all processes of the cluster, and its drivers


def main() -> None:
    """Let this one process start further nodes; those that it starts read the variable."""
    from ray.scripts import scripts

    stay_on_loopback()
    scripts.cli(["start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
