"""From files to a prepared, split data set."""
