"""Lines of boot files, edited so that all else in them stays: words of the kernel (words), shell variables (shell_file), whole files (edits). Pure."""
