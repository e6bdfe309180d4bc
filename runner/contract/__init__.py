"""What the platform and its programs agree on. Standard library only: an image copies this folder as it is."""
