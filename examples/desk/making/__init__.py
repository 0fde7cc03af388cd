"""How the data of the help desk are made: one module per subject, one function per file."""
