"""The intermediate representation: types, symbolic dimensions, graphs and their text form."""
