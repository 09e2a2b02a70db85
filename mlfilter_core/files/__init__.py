"""Files on shared disks: published whole or not at all, claimed by one process, identified by content."""
