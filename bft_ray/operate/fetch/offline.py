"""A process without the hub: reads a list of needs, and writes for each why it does not open, "" where it does."""

from __future__ import annotations

import json
import sys

from bft_ray.operate.fetch.bring import error_of
from bft_ray.operate.fetch.needs import Need

if __name__ == "__main__":
    needs = [Need(**{**fields, "splits": tuple(fields["splits"])}) for fields in json.load(sys.stdin)]
    print("\n" + json.dumps([error_of(need) for need in needs]))  # the last line: libraries may print too
