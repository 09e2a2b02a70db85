"""The proof, from the files of an output folder alone, that everything in it adds up."""
