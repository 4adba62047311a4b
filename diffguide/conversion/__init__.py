"""From weights that another program trained to runs of this one."""
