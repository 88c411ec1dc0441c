"""The commit protocol: markers, lease, compaction, orphans."""
