"""The commit protocol: markers, lease, windows, orphans."""
