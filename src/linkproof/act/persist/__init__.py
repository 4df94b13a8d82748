"""Makes register words last over reboots: what is planned for it (plan), kept (persist_file), started at boot (unit), and done there (reapply)."""
