"""Its place makes `evidence` (drawn and recorded machines) importable from every test."""
