"""The splits, and the largest that is taken. Constants alone: the converter needs them before the
manifest, whose pydantic takes 0.1 s to import."""

SPLITS = ("train", "val", "test")

# Pixels of an image's side in a shards folder.
MAX_SIDE = 8192
# Of an image that is decoded, where a conversion did not say otherwise: 67 megapixels.
MAX_PIXELS = 1 << 26
# Twice that of the largest public set of images: its order in an epoch takes 80 GB, and all counts
# fit everywhere.
MAX_IMAGES = 10**10
