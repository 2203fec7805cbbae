"""Images, folders and videos to label maps."""
