"""What belongs to the command line alone."""
