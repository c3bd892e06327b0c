"""One command each, printing command, machine, versions, shapes, medians and ratios; see README.md here."""
