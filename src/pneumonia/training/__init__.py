"""From a prepared data set to trained weights."""

import os

# A hub that does not answer is given up after this; the hub's package reads it when it is imported.
os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
