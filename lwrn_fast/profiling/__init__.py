"""What takes the time: networks layer by layer on each backend, and whole beside other engines."""
