"""How a network is read: denoisers, log-densities, classifiers, and what a network's output means."""
