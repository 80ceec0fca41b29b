"""JUnit, HTML, comparison and verification, all derived from the report."""
