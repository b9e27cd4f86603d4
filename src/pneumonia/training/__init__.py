"""From a prepared data set to trained weights."""
