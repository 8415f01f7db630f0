"""What brings an int8 variant nearer to the float network: outliers moved, ranges by value, weights rounded for each other."""
