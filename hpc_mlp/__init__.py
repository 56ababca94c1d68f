"""hpc-mlp: from a ZIP of class-labelled images to a fair comparison of classifiers."""

__version__ = "0.1.0"
