"""From configuration files to objects: composition, type checks, messages for mistakes."""
