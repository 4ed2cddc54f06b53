"""NumPy-style functions on traced values, under the names of the array API standard."""
