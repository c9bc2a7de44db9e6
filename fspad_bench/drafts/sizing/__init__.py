"""How large a draft tree should be: costs of this machine, confidence of this draft."""
