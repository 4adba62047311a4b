"""From configuration files to objects: composition, type checks, diagnosis of mistakes."""
