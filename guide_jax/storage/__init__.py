"""Files: networks, results, training states, and their fingerprints."""
