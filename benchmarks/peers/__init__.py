"""The same models in other systems, written the way a strong user of each would write them."""
