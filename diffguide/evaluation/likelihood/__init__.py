"""Log-likelihoods: the bound, the probability-flow ODE, exact densities."""
