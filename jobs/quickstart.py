"""The main job in small: which settings suit the starter data? A whole study on CPU, in minutes.

Profile, search, confirmation with three seeds, test and registration, as `bft-ray search starter` does them; given
again, it resumes where it stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bft_ray.errors import BftError
from bft_ray.space.load import load_study


def main(overrides: list[str]) -> int:
    """Run the study of the bundled search space, and say where to look."""
    began = time.monotonic()
    space, base = load_study("starter", overrides=overrides)
    from bft_ray.study.driver import search
    from bft_ray.study.records.database import DEFAULT_DATABASE  # late: torch and Ray
    from bft_ray.tracking.server import page_of, where

    result = search(space, base, DEFAULT_DATABASE, measure=False)
    bft_ray, (option, _) = Path(sys.executable).parent / "bft-ray", where(base.tracking.uri)
    print(f"\n{result.text}\n\nThe study took {time.monotonic() - began:.0f} s. Look on:")
    print(f"  {bft_ray} report {result.name}   its answer and evidence as one page")
    print(f"  {result.folder}/profile/profile.html   windows, epsilons and caps on this data")
    print(f"  {bft_ray} best {base.domain}{option}   the champion, from the registry")
    print(f"  {bft_ray} train --champion {base.domain}{option}   trains with its settings")
    page = page_of(base.tracking.uri).replace("bft-ray", str(bft_ray), 1)
    print(f"  {page}   its runs in MLflow, for you alone")
    if result.failed:
        print(f"error: {result.failed}", file=sys.stderr)
    return int(bool(result.failed))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the study", file=sys.stderr)
        sys.exit(130)
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
