"""From raw scans in native space to images in template space."""
