"""How lwrn_fast is built; no part of the installed package."""
