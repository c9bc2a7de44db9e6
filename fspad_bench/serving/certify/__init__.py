"""Certify an engine through its API: speculation on against speculation off."""
