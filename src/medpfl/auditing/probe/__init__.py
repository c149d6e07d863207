"""The probe: run a defense to check that it does what it discloses."""
