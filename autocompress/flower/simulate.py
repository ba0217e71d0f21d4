"""A simulation: clients and server of one study on this machine. Runs in Flower's environment."""

from __future__ import annotations

import argparse

from flwr.simulation import run_simulation

from autocompress.flower import client_app, server_app


def main() -> None:
    """Run until the study closes the connection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    asked = parser.parse_args()
    run_simulation(
        server_app.app,
        client_app.app,
        num_supernodes=asked.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": asked.cpus, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()
