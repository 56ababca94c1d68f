"""Models. Importing this package registers the built-in kinds."""

from hpc_mlp.models import cnn as cnn
from hpc_mlp.models import mlp as mlp
