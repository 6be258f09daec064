"""Which positions of which axes live and die together: labels, and a rule per primitive."""
