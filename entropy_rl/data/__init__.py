"""Problems: generated ones with a checkable answer, and real ones read from files."""
