"""For `accelerate launch -m hpc_mlp.train OUT`. Imported, it is the function `hpc_mlp.train`."""

import sys

if __name__ == "__main__":
    from hpc_mlp.cli.train import train as command

    command()
else:
    from hpc_mlp.api import train

    # An import gives the package an attribute of this name: what stands in sys.modules.
    sys.modules[__name__] = train  # type: ignore[assignment]
