"""What surrounds the notebooks: exercises and their checks, solutions, the book, the first cell."""
