"""``python -m tests.integrations.flower_simulation FOLDER CLIENTS``: two rounds of a simulation on Ray, recorded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.integrations import flower_apps as apps


def simulate(folder: Path, clients: int) -> None:
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from medpfl.integrations import flower

    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        apps.run(flower.RecordingGrid(grid, folder / "server"), 2)

    run_simulation(
        server,
        apps.client_app([flower.record(folder / "clients" / "{site}", truth=True)]),
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    simulate(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
