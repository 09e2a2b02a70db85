"""Files on shared disks: published whole or not at all, claimed by one process, told apart by content."""
