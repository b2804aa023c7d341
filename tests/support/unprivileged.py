"""A function run by `nobody`, in a child of this process: what another user of the machine can do."""

from __future__ import annotations

import os
import pickle
import pwd
import traceback
from collections.abc import Callable
from typing import Any

import pytest

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")


def as_nobody(function: Callable[[], Any]) -> Any:
    """What it returns; forked, so that nobody's rights need not reach to any interpreter or package."""
    ids = pwd.getpwnam("nobody")
    get, put = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(ids.pw_gid)
            os.setuid(ids.pw_uid)
            os.chdir("/")
            answer = pickle.dumps((True, function()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(put, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(put)
    with os.fdopen(get, "rb") as pipe:
        is_fine, value = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert is_fine, value
    return value
