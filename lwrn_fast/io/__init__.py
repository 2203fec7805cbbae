"""Files in and out: images, videos, a window on the screen, and files that are whole or not there."""
