"""How far a right answer may be from the golden one: from declared arithmetic to standard deviations."""
