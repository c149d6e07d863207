"""The operating system's isolation and its name, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from medpfl.isolation.system import active


def machine(root: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


STATUS = "proc/self/status"
WHOLE = {"proc/self/uid_map": "         0          0 4294967295\n"}


@pytest.mark.parametrize(
    ("files", "links", "found"),
    [
        ({STATUS: "Name:\tpython\nNoNewPrivs:\t0\nSeccomp:\t0\n", **WHOLE}, {}, []),
        ({STATUS: "NoNewPrivs:\t1\nSeccomp:\t2\n", **WHOLE}, {}, ["a seccomp filter", "no new privileges"]),
        ({STATUS: "Seccomp:\t1\n", ".dockerenv": ""}, {}, ["a Docker container", "seccomp (strict)"]),
        ({"run/.containerenv": ""}, {}, ["a Podman container"]),
        ({"proc/1/cgroup": "0::/kubepods.slice/x\n"}, {}, ["a Kubernetes pod"]),
        ({"proc/self/attr/current": "docker-default (enforce)\n"}, {}, ["AppArmor (docker-default (enforce))"]),
        ({"proc/self/attr/current": "unconfined\n"}, {}, []),
        ({"proc/self/attr/current": "system_u:system_r:container_t:s0:c1,c2\0"}, {},
         ["SELinux (system_u:system_r:container_t:s0:c1,c2)"]),
        ({"proc/self/attr/current": "unconfined_u:unconfined_r:unconfined_t:s0\0"}, {}, []),
        ({"proc/self/uid_map": "0 1000 1\n"}, {}, ["a user namespace"]),
        (WHOLE, {"proc/self/ns/net": "net:[2]", "proc/1/ns/net": "net:[1]", "proc/self/ns/pid": "pid:[1]",
                 "proc/1/ns/pid": "pid:[1]"}, ["a net namespace"]),
    ],
)  # fmt: skip
def test_what_a_machine_says(tmp_path, files, links, found):
    assert active(machine(tmp_path, files, links), "linux") == found


def test_elsewhere_it_is_not_known(tmp_path):
    assert active(tmp_path, "darwin") == ["unknown"]


def test_of_this_machine_it_says_something_that_can_be_printed():
    assert all(isinstance(word, str) and word for word in active())
