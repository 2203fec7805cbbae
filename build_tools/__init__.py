"""The build of lwrn_fast; not part of the installed package."""
