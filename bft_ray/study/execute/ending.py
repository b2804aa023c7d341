"""USR1 during a study: its workers save the trials that run, and the driver ends."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable

from bft_ray import saving
from bft_ray.study.controller import Controller
from bft_ray.study.records.leaderboard import trials_text

log = logging.getLogger(__name__)


def ending(controller: Controller, ask: Callable[[], None]) -> Callable[[], None]:
    """A function for the driver to call often. After USR1 it gives out no more segments, asks the workers to save those that run,
    and waits for them, `saving.PATIENCE_S` at most.

    Args:
        ask: asks the workers.
    """
    own, is_main = signal.getsignal(signal.SIGUSR1), threading.current_thread() is threading.main_thread()

    def look() -> None:
        if is_main and own is not None and signal.getsignal(signal.SIGUSR1) != own:
            signal.signal(signal.SIGUSR1, own)  # Tune puts its own there, which ends the study as if it were done
        if not saving.asked():
            return
        if not controller.is_held:
            controller.is_held = True
            log.warning(
                "USR1: saving the state of %s, then the study ends; the same command resumes it",
                trials_text(controller.num_running),
            )
        ask()
        left = controller.num_running
        if left and not saving.is_overdue():
            return
        lost = (
            f"; {left} have saved nothing in {saving.PATIENCE_S:g} s, and resume from an earlier state" if left else ""
        )
        done = trials_text(controller.num_saved)
        raise saving.Saved(f"USR1: the state of {done} is saved{lost}; the same command resumes the study")

    return look
