"""EVIDENCE. Reads what a person has, changes nothing, and does not know what it means."""
