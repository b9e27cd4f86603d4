"""Running the compiled pipeline on this machine, and what its steps share wherever they run."""
