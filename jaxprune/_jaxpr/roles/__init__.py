"""What each axis of a parameter does where it is multiplied, and what it is multiplied with."""
