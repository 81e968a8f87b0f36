"""How a page becomes exactly once: page, transaction, row, and where a start goes on."""
