"""The job: federated averaging over two sites, in FLARE's simulator."""

import argparse
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import TransferType
from nvflare.recipe import SimEnv


def recipe_of(pictures: Path, network: str, rounds: int, transfer: str) -> FedAvgRecipe:
    """Return the job."""
    return FedAvgRecipe(
        name="gray-pictures",
        model={"class_path": "net.Net", "args": {"network": network}},
        min_clients=2,
        num_rounds=rounds,
        train_script="client.py",
        train_args=f"--pictures {pictures} --network {network}",
        params_transfer_type=TransferType(transfer),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--network", default="norm_cnn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--transfer", choices=("FULL", "DIFF"), default="FULL")
    given = parser.parse_args()
    recipe = recipe_of(given.pictures.resolve(), given.network, given.rounds, given.transfer)
    recipe.execute(SimEnv(num_clients=2, workspace_root=str(given.workspace.resolve())))
