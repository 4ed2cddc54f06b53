"""Planning: the order of a graph and the place of every buffer in one arena."""
