"""Studies whose data stay where they are: clients answer with sums, a server merges them."""
