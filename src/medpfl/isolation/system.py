"""The operating system's isolation: `harden` switches on a little, and `active` lists the restrictions in force."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

__all__ = ["active", "harden"]

_NO_NEW_PRIVS = 38
"""``PR_SET_NO_NEW_PRIVS`` of Linux's prctl."""
_MARKS = {
    "/.dockerenv": "a Docker container",
    "/run/.containerenv": "a Podman container",
    "/run/host/container-manager": "a container",
}
_NAMES = {"docker": "a Docker container", "kubepods": "a Kubernetes pod", "lxc": "an LXC container"}
_WHOLE = ["0", "0", "4294967295"]
"""The user id map outside any user namespace."""


def harden() -> None:
    """Switch on restrictions open to any process: no core file and, on Linux, no new privileges by executing a file."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)


def active(root: Path = Path("/"), platform: str = sys.platform) -> list[str]:
    """Return names for the isolation imposed on this process by the operating system.

    On systems other than Linux, the result is ``["unknown"]``.

    Args:
        root: folder that contains ``proc`` and the containers' marker files.
        platform: the platform's name, as in ``sys.platform``.
    """
    if platform != "linux":
        return ["unknown"]
    proc = root / "proc"
    return [*_container(root), *_status(_text(proc / "self/status")), *_label(proc), *_namespaces(proc)]


def _container(root: Path) -> list[str]:
    found = [what for mark, what in _MARKS.items() if (root / mark.lstrip("/")).exists()]
    groups = _text(root / "proc/1/cgroup") + _text(root / "proc/self/cgroup")
    found += [what for name, what in _NAMES.items() if name in groups]
    return list(dict.fromkeys(found))


def _status(text: str) -> list[str]:
    """Read seccomp's mode and the no-new-privileges bit from the text in ``/proc/self/status``."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    modes = {"1": "seccomp (strict)", "2": "a seccomp filter"}
    seccomp = modes.get(fields.get("Seccomp", "").strip())
    private = "no new privileges" if fields.get("NoNewPrivs", "").strip() == "1" else None
    return [word for word in (seccomp, private) if word]


def _label(proc: Path) -> list[str]:
    """Read AppArmor's profile or SELinux's label. The list is empty if neither confines the process."""
    label = _text(proc / "self/attr/current").strip("\0\n ")
    free = ("", "unconfined", "kernel")
    kind = "SELinux" if label.count(":") >= 3 else "AppArmor"
    if label.partition(" ")[0] in free or ":unconfined_t:" in label:
        return []
    return [f"{kind} ({label})"]


def _namespaces(proc: Path) -> list[str]:
    """Return the process's own namespaces: different from process 1's, as far as readable, or with mapped user ids."""
    found = []
    for kind in ("user", "pid", "net"):
        own, first = (_link(proc / one / "ns" / kind) for one in ("self", "1"))
        mapped = kind == "user" and _text(proc / "self/uid_map").split() not in ([], _WHOLE)
        if mapped or (own and first and own != first):
            found.append(f"a {kind} namespace")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 (the target is no path)
    except OSError:
        return ""
