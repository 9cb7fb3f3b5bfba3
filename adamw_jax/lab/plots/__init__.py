"""Draw pictures: one kind of drawing per file, and ``files`` to write them."""
