"""Input and output: images, videos, a window on the screen, and atomic writing of files."""
