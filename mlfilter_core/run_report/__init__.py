"""Reports on the runs that made an output folder: facts, a page, a comparison of two folders."""
