"""The door for `accelerate launch -m hpc_mlp.train OUT`."""

from hpc_mlp.cli.train import train

if __name__ == "__main__":
    train()
