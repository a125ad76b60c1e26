"""How documents are found and ordered: a lexical index, a dense one, and their fusion."""
