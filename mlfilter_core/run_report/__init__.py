"""What the files of an output folder say of the runs that made them, as facts, a page, a comparison."""
