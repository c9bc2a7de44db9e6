"""Whether a row keeps its bits in company: which operation of a forward changes it first."""
